"""Seams that are called inside of others."""

from __future__ import annotations

import pytest
import torch
from helpers import Scale, image
from torch import Tensor, nn
from toys import repeat

from mmselfdistill.core.recorder import record
from mmselfdistill.families.plan import Seam
from mmselfdistill.families.shared import seams


class Nested(nn.Module):
    """A seam whose second part is a seam too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Scale(2.0)
        self.second = Scale(3.0)
        self.both = True

    def extract_feat(self, x: Tensor) -> Tensor:
        x = self.first(x) + 1
        return self.second(x) if self.both else x

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.extract_feat(x))
        return result


NESTED = seams('extract_feat', 'second.forward', 'first.forward')


def test_only_the_outermost_of_nested_calls_is_repeated() -> None:
    student, teacher = Nested(), Nested()
    with torch.no_grad():
        teacher.first.factor.fill_(5.0)
    with record(student, NESTED) as calls:
        student(image())
    made = repeat(teacher, calls, NESTED)
    order = [
        ('extract_feat', 0),
        ('first.forward', 1),
        ('second.forward', 1),
        ('second.forward', 0),
    ]
    assert [(call.path, call.depth) for call in calls] == order
    assert [(call.path, call.depth) for call in made] == order
    assert (teacher.first.runs, teacher.second.runs) == (1, 2)
    # the inner calls are the teacher's own, with what it computed in between
    assert torch.equal(made[1].output, 5 * image())
    assert torch.equal(made[2].args[0], 5 * image() + 1)
    assert torch.equal(made[0].output, 3 * (5 * image() + 1))
    assert torch.equal(made[3].output, 9 * (5 * image() + 1))


def test_differing_calls_are_an_error_that_names_them() -> None:
    student, teacher = Nested(), Nested()
    teacher.both = False
    with record(student, NESTED) as calls:
        student(image())
    message = (
        r"The teacher did not repeat the student's calls: the student made "
        r"\[\('extract_feat', 0\), \('first.forward', 1\), \('second.forward', 1\)\], "
        r"the teacher \[\('extract_feat', 0\), \('first.forward', 1\)\]"
    )
    with pytest.raises(RuntimeError, match=message):
        repeat(teacher, calls, NESTED)


class Chooser(nn.Module):
    """Chooses the larger half of what its encoder returns, and decodes it."""

    def __init__(self, encoder: float, decoder: float, sign: float) -> None:
        super().__init__()
        self.encoder, self.decoder = Scale(encoder), Decoder(decoder)
        self.sign = sign
        self.again = True

    def head(self, x: Tensor) -> Tensor:
        memory = self.encoder(x)
        chosen = (self.sign * memory).topk(2).indices
        decoded: Tensor = self.decoder(query=chosen, memory=memory)
        return decoded

    def forward(self, x: Tensor) -> Tensor:
        result = self.head(x)
        # outside of the head, for something that is not compared
        other = torch.tensor([0, 1])
        return result + self.decoder(query=other, memory=x)


class Decoder(Scale):
    """Multiplies the memory at its queries."""

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(memory[query])


CHOSEN = seams('head', 'decoder.forward')
KEPT = [Seam('head'), Seam('decoder.forward', keep=('query',))]


def test_what_the_student_chose_is_kept_inside_a_seam() -> None:
    student, teacher = Chooser(2.0, 3.0, 1.0), Chooser(5.0, 7.0, -1.0)
    with record(student, CHOSEN) as calls:
        student(image())
    # left to itself the teacher chooses 0 and 1, whose memory is 0 and 5
    alone = repeat(teacher, calls, CHOSEN)
    assert alone[0].output.tolist() == [0.0, 35.0]
    made = repeat(teacher, calls, KEPT)
    order = [('head', 0), ('decoder.forward', 1), ('decoder.forward', 0)]
    assert [(call.path, call.depth) for call in made] == order
    # at the student's 3 and 2 the teacher's memory is 15 and 10
    assert calls[0].output.tolist() == [18.0, 12.0]
    assert made[0].output.tolist() == [105.0, 70.0]
    assert made[1].kwargs['memory'].tolist() == [0.0, 5.0, 10.0, 15.0]


class ByPosition(Chooser):
    """Gives its decoder the query by position, or the memory first and by name."""

    def __init__(self, *numbers: float, named: bool = False) -> None:
        super().__init__(*numbers)
        self.named = named

    def head(self, x: Tensor) -> Tensor:
        memory = self.encoder(x)
        chosen = (self.sign * memory).topk(2).indices
        if self.named:
            decoded: Tensor = self.decoder(memory=memory, query=chosen)
        else:
            decoded = self.decoder(chosen, memory)
        return decoded


@pytest.mark.parametrize('ours', [True, False])
@pytest.mark.parametrize('theirs', [True, False])
def test_what_is_kept_may_be_given_by_position(ours: bool, theirs: bool) -> None:
    student = ByPosition(2.0, 3.0, 1.0, named=ours)
    teacher = ByPosition(5.0, 7.0, -1.0, named=theirs)
    with record(student, CHOSEN) as calls:
        student(image())
    made = repeat(teacher, calls, KEPT)
    assert made[0].output.tolist() == [105.0, 70.0]


def test_a_call_outside_of_others_keeps_what_no_call_returned() -> None:
    student, teacher = Chooser(2.0, 3.0, 1.0), Chooser(5.0, 7.0, -1.0)
    with record(student, CHOSEN) as calls:
        student(image())
    made = repeat(teacher, calls, KEPT)
    assert teacher.decoder.runs == 2
    assert made[2].kwargs['query'] is calls[2].kwargs['query']
    assert made[2].output.tolist() == [0.0, 7.0]
    assert 'forward' not in vars(teacher.decoder)


def test_a_kept_argument_that_a_call_returned_is_the_teachers_outside() -> None:
    student, teacher = Chooser(2.0, 3.0, 1.0), Chooser(5.0, 7.0, -1.0)
    with record(student, CHOSEN) as calls:
        memory = student.head(image())
        student.decoder(query=torch.tensor([1]), memory=memory)
    kept = [Seam('head'), Seam('decoder.forward', keep=('query', 'memory'))]
    made = repeat(teacher, calls, kept)
    # within the head the student's 0, 2, 4, 6: its query chose 6 and 4
    assert made[0].output.tolist() == [42.0, 28.0]
    # the second of what the teacher's head returned
    assert made[2].output.tolist() == [7 * 28.0]


def test_choices_of_several_calls_are_kept_in_order() -> None:
    student, teacher = Chooser(2.0, 3.0, 1.0), Chooser(5.0, 7.0, -1.0)
    with record(student, CHOSEN) as calls:
        student.head(image())
        student.head(-image())
    made = repeat(teacher, calls, KEPT)
    assert [call.output.tolist() for call in (made[0], made[2])] == [
        [105.0, 70.0],
        [0.0, -35.0],
    ]
