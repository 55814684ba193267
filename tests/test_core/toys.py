"""Models small enough to compute by hand, and what the tests of the core do to them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Sequence

import torch
from helpers import Scale, added
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.given import groups_of
from mmselfdistill.core.handed import Handed
from mmselfdistill.core.replay import replay
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.families.plan import Call, Plan, Seam


def repeat(
    teacher: nn.Module,
    calls: Sequence[Call],
    seams: Sequence[Seam],
    own: Mapping[int, Any] | None = None,
) -> list[Call]:
    """Let a teacher make all of some calls."""
    plan = Plan('toy', tuple(seams))
    groups, handed = groups_of(calls), Handed([])
    return replay(teacher, groups, plan, own or {}, (), None, {}, handed)


class Gap(nn.Module):
    """The mean distance: of multiples of :func:`signs`, that of their factors."""

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        return (student - teacher).abs().mean()


TERMS = dict(
    features=dict(_delete_=True, type=Gap), logits=dict(type=Gap, site='bbox_head')
)
# of the student are 2 and 3
OTHERS = {'backbone': 5.0, 'bbox_head': 7.0}


class Toy(nn.Module):
    """Features by 2, logits by 3, and a loss of them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Scale(2.0)
        self.bbox_head: Any = Scale(3.0)

    def extract_feat(self, inputs: Tensor) -> Any:
        return self.backbone(inputs)

    def logits(self, inputs: Tensor) -> Any:
        return self.bbox_head(self.extract_feat(inputs))

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        logits = self.logits(inputs)
        return dict(loss_cls=logits.square().mean()) if mode == 'loss' else logits


def signs() -> Tensor:
    return torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])


@contextmanager
def distilled(
    student: nn.Module, factors: Mapping[str, float], **settings: Any
) -> Iterator[Distiller]:
    """Distil a toy with a teacher of which some parts have other factors."""
    distiller = build_distiller(student, settings.pop('terms', TERMS), **settings)
    distiller.teacher = make_teacher(student)
    set_factors(distiller.teacher, factors)
    distiller.attach()
    try:
        yield distiller
    finally:
        distiller.detach()


@torch.no_grad()
def set_factors(model: nn.Module, factors: Mapping[str, float]) -> None:
    for path, factor in factors.items():
        model.get_parameter(f'{path}.factor').fill_(factor)


def step(distiller: Distiller) -> dict[str, float]:
    """Return the terms of one iteration."""
    losses = distiller.student(signs(), mode='loss')
    return {name: float(loss.detach()) for name, loss in added(losses).items()}
