"""Seams that read more than their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmselfdistill.replay import lend, record, replay


class Positives(nn.Module):
    """A head whose positives another method gathers from what the loss noted."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.noted: dict[str, Any] = dict(branch=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def gather(self) -> list[InstanceData]:
        return [InstanceData(kernels=self.noted['kernels'][self.noted['index']])]


class MaskDetector(nn.Module):
    """Kernels of the positives, which its loss chooses, make masks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Positives(3.0)

    def make_masks(self, positives: list[InstanceData]) -> Tensor:
        return torch.cat([each.kernels for each in positives]) + 1

    def forward(self, x: Tensor) -> Tensor:
        self.head.noted.update(kernels=self.head(x), index=torch.tensor([2, 0]))
        return self.make_masks(self.head.gather())


def test_a_seam_is_told_the_teachers_version_of_what_the_model_noted() -> None:
    student, teacher = MaskDetector(), MaskDetector()
    with torch.no_grad():
        teacher.head.factor.fill_(7.0)
    own = teacher.head.noted['branch']
    seams = ['head.forward', 'head.gather', 'make_masks']
    state = {'head.gather': 'noted'}
    x = torch.tensor([1.0, 2.0, 4.0])
    with record(student, seams, state) as calls:
        student(x)
    made = replay(teacher, calls, seams, state=state)
    # the student's choice of positives, the teacher's kernels of them
    assert made[2].output.tolist() == [29.0, 8.0]
    assert calls[2].output.tolist() == [13.0, 4.0]
    assert teacher.head.noted['branch'] is own


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
