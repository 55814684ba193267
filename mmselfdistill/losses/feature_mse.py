"""Squared difference of features that were normalised in each image."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .common import in_full_precision, mean, standardized


@in_full_precision
def feature_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of instance-normalised features.

    .. math::
        \frac{1}{N C H W} \sum_{n, c, h, w} (\hat s - \hat t)^2

    where :math:`\hat s, \hat t` are each channel of each image, standardised
    over its pixels (no affine part). It keeps where a channel fires and drops
    how strongly, so that no network's scale makes the loss large: it is at
    most 4. A channel that is constant in an image standardises to 0, so maps
    of one pixel say nothing. Source: LGD, arXiv 2109.11496.

    Args:
        student (Tensor): Features (N, C, H, W), or (N, C), of which each row is
            standardised over C.
        teacher (Tensor): Features, same shape. Gets no gradient.

    Returns:
        Tensor: A scalar in float32; 0 when N is 0.

    Raises:
        ValueError: If the shapes differ.
    """
    dims = tuple(range(2, student.ndim)) or (1,)
    difference = standardized(student, dims) - standardized(teacher, dims)
    return mean(difference.square())


@MODELS.register_module()
class FeatureMSELoss(nn.Module):
    """Squared difference of normalised features: see :func:`feature_mse_loss`."""

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        """Return the loss of one pair; no context is used."""
        return feature_mse_loss(student, teacher)
