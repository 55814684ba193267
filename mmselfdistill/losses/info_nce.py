"""Contrast of positions: aligning features by their mutual information."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from mmselfdistill.errors import check_number, check_whole

from .common import EPS, Loss, in_full_precision


@in_full_precision
def info_nce_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    max_positions: int = 1024,
) -> Tensor:
    r"""How much less the student's features tell of the teacher's than its own do.

    With :math:`s_i, t_j` the unit vectors of the :math:`K` positions of all
    images of the batch,

    .. math::
        L(S, T) = - \frac{1}{K} \sum_i \log
        \frac{\exp(s_i \cdot t_i / \tau)}{\sum_j \exp(s_i \cdot t_j / \tau)}

    and :math:`\log K - L(S, T)` is a lower bound of the mutual information
    :math:`I(F_T; F_S)` (arXiv 1807.03748). The result is what that bound falls
    short of the teacher's with itself, :math:`L(S, T) - L(T, T)`: exactly 0 for
    equal features. It is no distance: a student that tells positions apart
    better than the teacher does makes it negative, and its gradient at equality
    pulls that way. No projection is needed, since both sides have the same
    channels.

    Args:
        student (Tensor): Features (N, C, H, W) or (N, C).
        teacher (Tensor): Features, same shape. Gets no gradient.
        temperature (float): :math:`\tau`, above 0. Defaults to 0.1.
        max_positions (int): Largest :math:`K`, at least 2: of more positions,
            so many are taken, evenly spaced from the first to the last, since
            the cost grows with its square. Defaults to 1024.

    Returns:
        Tensor: A scalar in float32, the mean over positions; 0 when N is 0.

    Raises:
        ValueError: If the shapes differ.
    """
    queries = _unit_positions(student, max_positions)
    keys = _unit_positions(teacher, max_positions)
    return _info_nce(queries, keys, temperature) - _info_nce(keys, keys, temperature)


def _unit_positions(features: Tensor, max_positions: int) -> Tensor:
    maps = features.flatten(2) if features.ndim > 2 else features.unsqueeze(-1)
    images, _, pixels = maps.shape
    count = min(images * pixels, max_positions)
    # both ends included: a step that divides the width would see one column
    index = torch.arange(count, device=features.device)
    if images * pixels > max_positions:
        index = index * (images * pixels - 1) // (max_positions - 1)
    # only what is contrasted is moved: (K, C)
    rows = maps[index // max(pixels, 1), :, index % max(pixels, 1)]
    return rows * (rows.square().sum(1, keepdim=True) + EPS).rsqrt()


def _info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    similarity = queries @ keys.T / temperature
    own = torch.arange(len(keys), device=keys.device)
    return F.cross_entropy(similarity, own, reduction='sum') / max(len(keys), 1)


@MODELS.register_module()
class InfoNCELoss(Loss):
    """Gap of a mutual-information bound: see :func:`info_nce_loss`.

    Args:
        temperature (float): Divides the cosine similarities. Defaults to 0.1.
        max_positions (int): Most positions that are contrasted. Defaults to
            1024.

    Raises:
        ValueError: If the temperature is not above 0, or max_positions is not
            a whole number of at least 2.
    """

    def __init__(self, temperature: float = 0.1, max_positions: int = 1024) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)
        self.max_positions = check_whole('max_positions', max_positions, 2)

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        """Return the loss of one pair, whatever its numbers are."""
        return info_nce_loss(
            student,
            teacher,
            temperature=self.temperature,
            max_positions=self.max_positions,
        )
