"""A teacher has the buffers after its calls that it had before."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from torch import Tensor, nn
from toys import Toy, distilled, step


def in_place(mean: Tensor) -> None:
    mean += 1


def through_data(mean: Tensor) -> None:
    mean.data.add_(1)


def as_data(mean: Tensor) -> None:
    mean.data = mean.data + 1


class Moving(Scale):
    """Multiplies by a mean that it moves in each call."""

    def __init__(self, move: Callable[[Tensor], None]) -> None:
        super().__init__(3.0)
        self.move = move
        self.register_buffer('mean', torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.move(self.mean)
        return super().forward(x) * self.mean


@pytest.mark.parametrize('move', [in_place, through_data, as_data])
def test_buffers_are_put_back_however_they_are_moved(move: Any) -> None:
    student = Toy()
    student.bbox_head = Moving(move)
    with distilled(student, {}) as distiller:
        teacher: Any = distiller.teacher
        # the student's is one larger each time, and the teacher's is 2 in each call
        for number in range(4):
            assert step(distiller)['logits'] == 6 * number
            assert float(teacher.bbox_head.mean) == 1


def anew(prototypes: nn.Module) -> None:
    prototypes.mean = nn.Parameter(prototypes.mean + 1, requires_grad=False)


def without_gradient(prototypes: nn.Module) -> None:
    with torch.no_grad():
        prototypes.mean += 1


class Prototypes(Scale):
    """Multiplies by a parameter that it moves by itself."""

    def __init__(self, move: Callable[[Any], None]) -> None:
        super().__init__(3.0)
        self.move = move
        self.mean = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.move(self)
        return super().forward(x) * self.mean


@pytest.mark.parametrize(
    'move',
    [
        anew,
        without_gradient,
        lambda prototypes: through_data(prototypes.mean),
        lambda prototypes: as_data(prototypes.mean),
    ],
)
def test_parameters_that_a_call_moves_are_put_back_too(move: Any) -> None:
    student = Toy()
    student.bbox_head = Prototypes(move)
    with distilled(student, {}) as distiller:
        teacher: Any = distiller.teacher
        for number in range(4):
            assert step(distiller)['logits'] == 6 * number
            assert float(teacher.bbox_head.mean) == 1


def test_a_sparse_buffer_stays() -> None:
    class Graph(Scale):
        def __init__(self) -> None:
            super().__init__(3.0)
            self.register_buffer('links', torch.eye(3).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.links, super().forward(x).t()).t()

    student = Toy()
    student.bbox_head = Graph()
    with distilled(student, {}) as distiller:
        for _ in range(3):
            assert step(distiller)['logits'] == 0
        teacher: Any = distiller.teacher
        assert torch.equal(teacher.bbox_head.links.to_dense(), torch.eye(3))


def test_a_buffer_that_a_call_exchanges_is_the_teachers_own_again() -> None:
    class Exchanging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer('mean', torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = self.mean + 1
            return 3 * x * self.mean

    student = Toy()
    student.bbox_head = nn.Sequential(Scale(1.0), Exchanging())
    with distilled(student, {}) as distiller:
        teacher: Any = distiller.teacher
        own = teacher.bbox_head[1].mean
        for number in range(3):
            assert step(distiller)['logits'] == 6 * number
            assert teacher.bbox_head[1].mean is own and float(own) == 1
