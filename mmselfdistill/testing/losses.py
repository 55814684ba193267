"""The losses of a batch: the model's own, and the terms."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmselfdistill.core.keys import LOSS, is_ours


def loss_of(model: nn.Module, batch: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return the loss dict of a batch, which models may change: give a copy."""
    for draws in (torch.manual_seed, np.random.seed, random.seed):
        draws(seed)
    return model(**copy.deepcopy(batch), mode='loss')


def terms_of(losses: dict[str, Any], end: str = '') -> dict[str, Tensor]:
    """Return the terms of a loss dict by name, less what their keys end with."""
    return {
        key[len(LOSS) : len(key) - len(end)]: value
        for key, value in losses.items()
        if key.startswith(LOSS) and key.endswith(end)
    }


def values_of(losses: dict[str, Any], end: str = '') -> dict[str, float]:
    """Return the numbers of :func:`terms_of`."""
    return {name: float(v.detach()) for name, v in terms_of(losses, end).items()}


def own_losses(losses: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a loss dict that distillation did not add."""
    own = [value for key, value in losses.items() if not is_ours(key)]
    return [
        torch.as_tensor(each).detach()
        for value in own
        for each in (value if isinstance(value, (list, tuple)) else [value])
    ]
