"""Does a model learn from images without labels?"""

from __future__ import annotations

import copy
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.keys import UNLABELED
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.testing.identity import (
    Check,
    at_equal_weights,
    at_other_weights,
    compare_all,
    disturb,
    own_losses_twice,
    same,
)
from mmselfdistill.testing.losses import loss_of, values_of
from mmselfdistill.views import View


class Same:
    """Yields one batch again and again, as its preprocessor was given it."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch
        self.drawn = self.seed = self.skipped = 0
        self.skip_broken = False

    def __next__(self) -> dict[str, Any]:
        """Return a copy of it."""
        self.drawn += 1
        return copy.deepcopy(self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self


def check_unlabeled(
    model: nn.Module,
    raw: dict[str, Any],
    batch: dict[str, Any],
    confidence: float | None = None,
    **settings: Any,
) -> dict[str, Check]:
    """Check that a model is distilled correctly on images without labels.

    - At equal weights, with dropout and statistics off, every term is 0 on images that
      both sides see alike.
    - With the teacher's weights disturbed every term is positive, and its gradient
      reaches the student. A view changes it.
    - The losses of two iterations on the images with labels, and the running
      statistics, are bitwise those without the images without labels.

    Args:
        model (nn.Module): The student. A copy of it is tried.
        raw (dict): ``inputs``, images (C, H, W), and ``data_samples``, as its
            preprocessor takes them. Their annotations are taken away.
        batch (dict): The keyword arguments of its ``forward`` in mode 'loss':
            ``inputs`` (N, C, H, W) and ``data_samples``, as they leave it.
        confidence (float, optional): Of :class:`Unlabeled`. Random weights are sure of
            nothing, so it is 0 in the trial. Defaults to None.
        **settings: Of :func:`build_distiller`.

    Returns:
        dict[str, Check]: Of each term that applies there, by name.

    Raises:
        ValueError: If the model does not run without labels.
        RuntimeError: If it is not distilled correctly.
    """
    given = dict(confidence=None if confidence is None else 0.0)
    found, problems = _checked(copy.deepcopy(model), raw, batch, given, settings)
    if problems:
        # a head that begins at 0 does not depend on the image
        shaken = copy.deepcopy(model)
        disturb(shaken)
        found, problems = _checked(shaken, raw, batch, given, settings)
    if problems:
        raise RuntimeError('; '.join(problems))
    return found


def _checked(
    model: nn.Module,
    raw: dict[str, Any],
    batch: dict[str, Any],
    given: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[dict[str, Check], list[str]]:
    still(model)
    before = _alone(model, batch)
    raw = {**raw, 'data_samples': without_labels(raw['data_samples'])}
    unlabeled_settings = dict(batches=Same(raw), **given)
    distiller = build_distiller(model, unlabeled=unlabeled_settings, **settings)
    compare_all(distiller)
    if not distiller.terms:
        return {}, []
    unlabeled, teacher = distiller.unlabeled, make_teacher(model)
    assert unlabeled is not None
    distiller.teacher = teacher
    distiller.attach()
    try:
        own, found = at_equal_weights(unlabeled.comparison, batch, UNLABELED)
        distiller.restart()
        unlabeled.view = View(brightness=0.5, noise=0.5)
        seen = [values_of(loss_of(model, batch), UNLABELED)]
        disturb(teacher)
        seen.append(values_of(loss_of(model, batch), UNLABELED))
        unlabeled.view = None
        at_other_weights(model, batch, found, UNLABELED)
    finally:
        distiller.detach()
    problems = [f'{name}: {c.problem()}' for name, c in found.items() if c.problem()]
    problems += [
        f'{name}: it does not see the view'
        for name, check in found.items()
        # at equal weights a small difference may be lost in float32
        if not seen[0][name] > 0 and abs(seen[1][name]) == check.apart
    ]
    problems += _moved(model, own, *before)
    return found, problems


def _alone(
    model: nn.Module, batch: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the losses without images without labels, and the buffers that stay."""
    alone = copy.deepcopy(model)
    plain = own_losses_twice(alone, batch)
    # a loss may count something in each iteration
    after = dict(alone.named_buffers())
    still_there = {
        name: tensor.clone()
        for name, tensor in model.named_buffers()
        if torch.equal(tensor, after[name])
    }
    return plain, still_there


def _moved(
    model: nn.Module,
    own: list[Tensor],
    plain: list[Tensor],
    buffers: dict[str, Tensor],
) -> list[str]:
    """Say what images without labels have moved of the student."""
    problems = []
    if not same(plain, own):
        problems.append('images without labels change the losses of those with labels')
    problems += [
        f'images without labels move {name}'
        for name, tensor in model.named_buffers()
        if name in buffers and not torch.equal(tensor, buffers[name])
    ]
    return problems
