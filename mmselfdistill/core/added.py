"""The loss dict: the student's own losses, weighted, and the terms besides."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

from mmselfdistill.core.comparison import Comparison
from mmselfdistill.core.keys import TASK_WEIGHT, keys_of


def joined(
    model: str, losses: Any, terms: Mapping[str, Tensor], factor: float | None
) -> dict[str, Any]:
    """Return the loss dict of an iteration.

    Args:
        model (str): The name of the student's class.
        losses (dict): What the student's ``forward`` returned.
        terms (Mapping): See :func:`weighted_terms`.
        factor (float, optional): On the student's own losses. None: 1.

    Raises:
        KeyError: If the model has a loss of a term's name.
        TypeError: If the model returns no dict of losses.
    """
    if not isinstance(losses, dict):
        raise TypeError(
            f"self_distill: {model} returns a {type(losses).__name__} in mode='loss', "
            'and no dict: there is no place for the terms'
        )
    taken = sorted(terms.keys() & losses.keys())
    if taken:
        raise KeyError(f'self_distill: the model already has the losses {taken}')
    own = losses if factor is None else weighted_task(losses, factor)
    return {**own, **terms}


def weighted_task(losses: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return the student's own losses times a factor, and the factor for the log."""
    scaled: dict[str, Any] = {}
    for key, value in losses.items():
        if 'loss' in key and isinstance(value, (list, tuple)):
            value = [each * factor for each in value]
        elif 'loss' in key and isinstance(value, Tensor):
            value = value * factor
        scaled[key] = value
    return {**scaled, TASK_WEIGHT: torch.tensor(factor)}


def weighted_terms(
    comparison: Comparison,
    divergences: Mapping[str, Tensor],
    weights: Mapping[str, float],
    suffix: str = '',
) -> dict[str, Tensor]:
    """Return the terms as losses, and for the log without their weights.

    Args:
        comparison (Comparison): Says which terms there are.
        divergences (Mapping): Of the terms that are active.
        weights (Mapping): Of all terms.
        suffix (str): Of the names. Defaults to '': on images with labels.
    """
    result = {}
    for name in comparison.names():
        weight, value = weights[name], divergences.get(name, comparison.zero())
        loss, plain, factor = keys_of(name, suffix)
        result[loss] = weight * value
        result[plain] = value.detach()
        result[factor] = torch.full_like(value.detach(), weight)
    return result
