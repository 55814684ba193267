"""Parts that two modules share, and calls that are no part of a loss."""

from __future__ import annotations

import pytest
import torch
from helpers import Scale
from torch import Tensor, nn

from mmselfdistill.core.parts import adopt_parts, lend
from mmselfdistill.core.recorder import record
from mmselfdistill.families.plan import Seam


def test_parameters_are_lent_and_returned() -> None:
    student, teacher = (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in '12')
    own = teacher[1].weight
    # of a whole module, and one parameter of another
    with lend(student, teacher, ['1', '0.bias']):
        assert teacher[1].weight is student[1].weight
        assert teacher[0].bias is student[0].bias
        assert teacher[0].weight is not student[0].weight
    assert teacher[1].weight is own
    with pytest.raises(KeyError), lend(student, teacher, ['1']):
        raise KeyError
    assert teacher[1].weight is own
    assert teacher[0].bias is not student[0].bias


class Linked(nn.Module):
    """Hands one of its parts to another in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.decoder = nn.Linear(1, 1), nn.Sequential()

    def link(self) -> None:
        self.decoder.branch = self.branch


def test_links_that_a_forward_makes_are_made_in_the_teacher() -> None:
    student, teacher = Linked(), Linked()
    keys = list(teacher.state_dict())
    student.link()
    adopt_parts(student, teacher)
    adopt_parts(student, teacher)
    assert vars(teacher.decoder)['branch'] is teacher.branch
    # its checkpoint is as before
    assert list(teacher.state_dict()) == keys
    assert [name for name, _ in teacher.named_modules()] == ['', 'branch', 'decoder']


class Assigning(nn.Module):
    """Makes targets with the very seams of its loss, without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Scale(3.0)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.head(x + 1)
        return (self.head(x) - targets).square()


def test_calls_without_gradient_are_no_part_of_a_loss() -> None:
    student = Assigning()
    x = torch.ones(2)
    with record(student, [Seam('head.forward')]) as calls:
        student(x)
    assert [call.args[0] is x for call in calls] == [True]
    # but for those of a pass that has none at all
    with torch.no_grad(), record(student, [Seam('head.forward')]) as calls:
        student(x)
    assert [call.args[0] is x for call in calls] == [False, True]
