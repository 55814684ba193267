"""Pearson correlation of features, blind to their offset and scale."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .common import in_full_precision, standardized


@in_full_precision
def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""One minus the Pearson correlation of each channel with the teacher's.

    With :math:`\hat s, \hat t` the channel standardised over the positions of
    all images of the batch, and :math:`r_c` its correlation,

    .. math::
        \frac{1}{C} \sum_c (1 - r_c) =
        \frac{1}{C} \sum_c \frac{1}{2 N H W} \sum_{n, h, w} (\hat s - \hat t)^2

    The right side is what is computed: it is exactly 0 for equal features. A
    channel that is constant standardises to 0 (a variance far below 1e-6 is
    constant): 0 if it is so on both sides, one half if on one side only.
    A single position has no correlation: the result is 0.
    Source: PKD, arXiv 2207.02039.

    Args:
        student (Tensor): Features (N, C, H, W), or (N, C), correlated over N.
        teacher (Tensor): Features, same shape. Gets no gradient.

    Returns:
        Tensor: A scalar in float32, between 0 and 2; 0 when N is 0.

    Raises:
        ValueError: If the shapes differ.
    """
    difference = standardized(student).sub_(standardized(teacher))
    return difference.square().sum() / max(2 * difference.numel(), 1)


@MODELS.register_module()
class PKDLoss(nn.Module):
    """One minus the channels' Pearson correlation: see :func:`pkd_loss`.

    It takes (N, C, H, W) or (N, C), and needs at least 2 positions or rows.
    """

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        """Return the loss of one pair, whatever its numbers are."""
        return pkd_loss(student, teacher)
