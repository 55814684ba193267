"""What several files of tests build on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from torch import Tensor, nn

from mmselfdistill.core.teacher import tensors_of
from mmselfdistill.core.terms import Term

# of a level of an image, as many masks are compared
CELLS = 8


class Scale(nn.Module):
    """Multiplies by one number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        # a teacher is given plain numbers and lists of its student's
        self._runs = SimpleNamespace(count=0)

    @property
    def runs(self) -> int:
        return int(self._runs.count)

    @runs.setter
    def runs(self, count: int) -> None:
        self._runs.count = count

    def forward(self, x: Tensor) -> Tensor:
        self._runs.count += 1
        return x * self.factor


class Remembering(Scale):
    """Adds half of what it returned in the call before."""

    def __init__(self) -> None:
        super().__init__(3.0)
        self.memory: Any = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x) + self.memory * 0.5
        self.memory = result.detach()
        return result


def image() -> Tensor:
    return torch.arange(4.0)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}


def assert_bitwise(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = tensors_of(model)
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert different == []


def detection_batch(classes: int = 10) -> Any:
    return demo_mm_inputs(
        2, [[3, 64, 64]] * 2, num_items=[3, 2], num_classes=classes, with_mask=True
    )


def added(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[8:]: loss for key, loss in losses.items() if key[:8] == 'loss_sd_'}


@torch.no_grad()
def disturb(teacher: nn.Module) -> None:
    for parameter in teacher.parameters():
        parameter.mul_(1.1)


def only(terms: list[Term], name: str) -> Term:
    (term,) = (term for term in terms if term.name == name)
    return term


def surest(logits: Tensor) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Return the surest cells (image, row, column) of each image, and how sure."""
    scores, cells = [], []
    for image, maps in enumerate(logits.sigmoid().amax(1)):
        order = sorted(
            (
                (float(maps[y, x]), y, x)
                for y in range(len(maps))
                for x in range(len(maps[0]))
            ),
            reverse=True,
        )
        scores += [score for score, _, _ in order[:CELLS]]
        cells += [(image, y, x) for _, y, x in order[:CELLS]]
    return scores, cells
