"""The loss dict: the student's own losses, weighted, and the terms besides."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

from mmselfdistill.core.comparison import Comparison
from mmselfdistill.core.keys import TASK_WEIGHT, keys_of


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
