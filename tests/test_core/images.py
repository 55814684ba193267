"""A toy that takes images, and batches of images without labels for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Mapping

import torch
from torch import Tensor, nn
from toys import Toy

from mmselfdistill.core.distiller import Distiller

SHAPE = (2, 3, 4, 4)


class ImageToy(Toy):
    """Features by 2, logits by 3, a norm and a dropout whose outcome is a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.data_preprocessor = lambda batch, training: batch

    def extract_feat(self, inputs: Tensor) -> Any:
        # the outcome of the norm is not used: factors stay what they are
        return self.backbone(inputs + 0 * self.dropout(self.norm(inputs)))

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        losses = super().forward(inputs, data_samples, mode)
        if mode != 'loss':
            return losses
        return dict(losses, loss_drawn=self.dropout(torch.ones(64)).mean())


def images(value: float = 0.0) -> Tensor:
    return torch.arange(96.0).view(SHAPE) + value


def brighter(
    seen: Tensor, draw: torch.Generator, sizes: Any = None, made_up: Any = None
) -> tuple[Tensor, Tensor]:
    """A view: the student sees one more everywhere."""
    return seen + 1, seen


class Numbered:
    """Batches of images without labels: the n-th is brighter by n."""

    def __init__(self) -> None:
        self.drawn = self.seed = self.skipped = 0
        self.skip_broken = False

    def __next__(self) -> dict[str, Any]:
        self.drawn += 1
        return dict(inputs=images(float(self.drawn)), data_samples=[Sample()] * 2)


class Sample(SimpleNamespace):
    """A data sample without annotations."""

    def __init__(self, metainfo: Mapping[str, Any] | None = None) -> None:
        super().__init__(metainfo=metainfo or {})


def losses(distiller: Distiller) -> dict[str, Tensor]:
    """Return the loss dict of the next iteration."""
    distiller.iteration = distiller.forwards
    found: dict[str, Tensor] = distiller.student(images(), mode='loss')
    return found
