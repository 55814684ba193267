"""A teacher has the buffers after its calls that it had before."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from torch import Tensor, nn
from toys import Toy, distilled, step


class Moving(Scale):
    """Multiplies by a mean that it moves in each call: a buffer, or a parameter."""

    def __init__(self, move: Callable[[Any], None], is_buffer: bool) -> None:
        super().__init__(3.0)
        self.move = move
        if is_buffer:
            self.register_buffer('mean', torch.ones(()))
        else:
            self.mean = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.move(self)
        return super().forward(x) * self.mean


def in_place(moving: Moving) -> None:
    with torch.no_grad():
        moving.mean += 1


def through_data(moving: Moving) -> None:
    moving.mean.data.add_(1)


def as_data(moving: Moving) -> None:
    moving.mean.data = moving.mean.data + 1


def anew(moving: Moving) -> None:
    new = moving.mean.detach() + 1
    is_parameter = isinstance(moving.mean, nn.Parameter)
    moving.mean = nn.Parameter(new, requires_grad=False) if is_parameter else new


@pytest.mark.parametrize('is_buffer', [True, False])
@pytest.mark.parametrize('move', [in_place, through_data, as_data, anew])
def test_what_a_call_moves_is_put_back(move: Any, is_buffer: bool) -> None:
    student = Toy()
    student.bbox_head = Moving(move, is_buffer)
    with distilled(student, {}) as distiller:
        teacher: Any = distiller.teacher
        own = teacher.bbox_head.mean
        # the student's is one larger each time, and the teacher's is 2 in each call
        for number in range(4):
            assert step(distiller)['logits'] == 6 * number
            assert float(teacher.bbox_head.mean) == 1
            assert teacher.bbox_head.mean is own


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
