"""Parts of the student that are arguments become those of its teacher."""

from __future__ import annotations

from typing import Any, Callable, ClassVar

import pytest
import torch
from helpers import Remembering, Scale
from torch import Tensor, nn
from toys import OTHERS, TERMS, Gap, Toy, distilled, set_factors, step

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.twin import Twin


class GivenHead(Scale):
    def forward(self, x: Tensor, given: Any) -> Tensor:  # type: ignore[override]
        if isinstance(given, nn.Module):
            return super().forward(given(x))
        return super().forward(x) * given


class GivingToy(Toy):
    """Its head is given a parameter, a buffer or a module, or what is made of one."""

    def __init__(self, give: Callable[[Any], Any]) -> None:
        super().__init__()
        self.give = give
        self.bbox_head = GivenHead(3.0)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer('constant', torch.ones(3))
        self.adapter = Scale(1.0)

    def logits(self, inputs: Tensor) -> Any:
        return self.bbox_head(self.extract_feat(inputs), self.give(self))


@torch.no_grad()
def fill(teacher: Any) -> None:
    """Let each part that is an argument be 4 times the student's."""
    for tensor in (teacher.scale, teacher.constant, teacher.adapter.factor):
        tensor.fill_(4.0)


GAP = 2 * 3 * 4 - 2 * 3


@pytest.mark.parametrize(
    'give',
    [
        lambda model: model.scale.detach(),
        lambda model: model.scale.data[:1],
        lambda model: model.constant[None],
        lambda model: model.constant.detach().expand(2, 3),
        lambda model: model.scale[1:2],
        lambda model: model.scale.expand(2, 3),
    ],
    ids=[
        *('detached', 'a part of the data', 'a view of a buffer', 'expanded'),
        *('a part that trains', 'expanded, and trains'),
    ],
)
def test_a_part_of_a_weight_is_the_teachers(give: Any) -> None:
    with distilled(GivingToy(give), {}) as distiller:
        fill(distiller.teacher)
        for _ in range(2):
            assert step(distiller)['logits'] == GAP


def test_a_weight_whose_data_was_moved_is_not_mistaken() -> None:
    noise = torch.full((3,), 5.0)
    given: list[Tensor] = []
    student = GivingToy(lambda model: given[0])
    with distilled(student, {}) as distiller:
        fill(distiller.teacher)
        given.append(student.scale.data)
        assert step(distiller)['logits'] == GAP
        # the old memory is by now that of something else
        given[0].copy_(noise)
        student.scale.data = torch.ones(3)
        assert step(distiller)['logits'] == 0


@pytest.mark.parametrize(
    ('give', 'exchange'),
    [
        (
            lambda model: model.scale,
            lambda model: setattr(model, 'scale', nn.Parameter(torch.ones(3))),
        ),
        (
            lambda model: model.constant,
            lambda model: setattr(model, 'constant', torch.ones(3)),
        ),
        (
            lambda model: model.adapter,
            lambda model: setattr(model, 'adapter', Scale(1.0)),
        ),
    ],
    ids=['a parameter', 'a buffer', 'a module'],
)
def test_what_takes_a_parts_place_has_its_twin(give: Any, exchange: Any) -> None:
    student = GivingToy(give)
    with distilled(student, {}) as distiller:
        fill(distiller.teacher)
        for _ in range(3):
            assert step(distiller)['logits'] == GAP
            exchange(student)


class Tempered(Scale):
    def __init__(self, temperature: float) -> None:
        super().__init__(3.0)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.temperature


def test_a_new_heads_numbers_are_the_students() -> None:
    student = Toy()
    student.bbox_head = Tempered(1.0)
    with distilled(student, OTHERS) as distiller:
        for temperature in (1.0, 2.0, 3.0):
            student.bbox_head = Tempered(temperature)
            assert step(distiller)['logits'] == (5 * 7 - 2 * 3) * temperature


def test_a_head_of_the_first_generation_is_read_in_the_second() -> None:
    student = Toy()
    student.bbox_head = Tempered(1.0)
    distiller = build_distiller(student, TERMS)
    distiller.trial = make_teacher(student)
    distiller.attach()
    step(distiller)
    student.bbox_head = Tempered(1.0)
    distiller.teacher = make_teacher(student)
    set_factors(distiller.teacher, OTHERS)
    assert step(distiller)['logits'] == 29
    student.bbox_head.temperature = 0.5
    assert step(distiller)['logits'] == 29 / 2
    distiller.detach()


class Counting(Toy):
    """Counts its iterations in a buffer, a new tensor each time."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts = counts
        self.register_buffer('steps', torch.zeros(()))
        self.bbox_head = Remembering()

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        losses = super().forward(inputs, data_samples, mode)
        if self.counts:
            self.steps = self.steps + 1
        return losses


def test_a_buffer_that_is_assigned_leaves_the_teacher_its_memory() -> None:
    found = []
    for counts in (False, True):
        with distilled(Counting(counts), OTHERS) as distiller:
            found.append([step(distiller)['logits'] for _ in range(5)])
    assert found[0] == found[1]
    assert found[0][:3] == [29, 29 * 1.5, 29 * 1.75]


def test_a_buffer_that_is_given_and_then_assigned_is_the_teachers() -> None:
    class Assigning(GivingToy):
        def logits(self, inputs: Tensor) -> Any:
            logits = super().logits(inputs)
            self.constant = self.constant + 0
            return logits

    with distilled(Assigning(lambda model: model.constant), {}) as distiller:
        fill(distiller.teacher)
        for _ in range(4):
            assert step(distiller)['logits'] == GAP


def test_a_buffer_that_two_modules_hold_is_the_teachers_after_one_lets_go() -> None:
    class Adapting(GivingToy):
        def __init__(self) -> None:
            super().__init__(lambda model: model.adapter.constant)
            self.adapter = Scale(1.0)
            self.adapter.register_buffer('constant', self.constant)

        def forward(
            self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
        ) -> Any:
            losses = super().forward(inputs, data_samples, mode)
            self.constant = self.constant + 0
            return losses

    with distilled(Adapting(), {}) as distiller:
        fill(distiller.teacher)
        distiller.teacher.adapter.constant.copy_(distiller.teacher.constant)  # type: ignore[union-attr]
        for _ in range(5):
            assert step(distiller)['logits'] == GAP


class ManyHeads(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = nn.ModuleList([Scale(3.0)])

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        return sum(head(features) for head in self.bbox_head)


def test_a_head_that_is_added_later_is_not_compared() -> None:
    student = ManyHeads()
    factors = {'backbone': 5.0, 'bbox_head.0': 7.0}
    terms = {**TERMS, 'logits': dict(type=Gap, site='bbox_head.0')}
    with distilled(student, factors, terms=terms) as distiller:
        assert step(distiller) == dict(features=3, logits=5 * 7 - 2 * 3)
        student.bbox_head.append(Scale(1.0))
        assert step(distiller) == dict(features=3, logits=5 * 7 - 2 * 3)


def test_a_twin_is_made_once_as_long_as_nothing_is_exchanged() -> None:
    student = GivingToy(lambda model: 1.0)
    twin = Twin(student, make_teacher(student))
    with torch.no_grad():
        student.scale.fill_(2.0)
    student.scale.data = torch.zeros(3)
    assert twin.fits()
    student.later = Scale(1.0)
    assert not twin.fits()


class ByItsClass(Toy):
    """Reaches its own backbone where no copy has another."""

    known: ClassVar[dict[str, nn.Module]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.known['backbone'] = self.backbone

    def extract_feat(self, inputs: Tensor) -> Any:
        return self.known['backbone'](inputs)


def test_a_teacher_that_would_run_the_student_is_refused() -> None:
    message = "the teacher calls the student's own Scale 'backbone', which it reaches"
    student = ByItsClass()
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                step(distiller)
    # what watched over it is gone
    assert torch.equal(student(torch.ones(1)), torch.full((1,), 6.0))


class Late(Scale):
    """Makes a part of itself when it is called first."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__(3.0)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, 'part'):
            self.part = self.make()
        result: Tensor = self.part(super().forward(x))
        return result


def test_a_part_without_weights_may_be_made_in_the_first_iteration() -> None:
    student = Toy()
    student.bbox_head = Late(nn.Identity)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == 5 * 7 - 2 * 3


def test_weights_that_are_made_in_the_first_iteration_are_refused() -> None:
    student = Toy()
    student.bbox_head = Late(lambda: Scale(2.0))
    message = r"'bbox_head\.part\.factor' was made in the first iteration"
    with distilled(student, OTHERS) as distiller, pytest.raises(
        RuntimeError, match=message
    ):
        step(distiller)
