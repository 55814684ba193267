"""Squared difference of features that were normalised in each image."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.errors import check_whole

from .common import in_full_precision, standardized


@in_full_precision
def feature_mse_loss(
    student: Tensor, teacher: Tensor, *, projector: Tensor | None = None
) -> Tensor:
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
        projector (Tensor, optional): (C, C), a 1x1 convolution of the student's
            features. Defaults to None: they are compared as they are.

    Returns:
        Tensor: A scalar in float32; 0 when N is 0.

    Raises:
        ValueError: If the shapes differ, or the projector has other channels.
    """
    if projector is not None:
        if student.shape[1] != len(projector):
            raise ValueError(
                f'projector: it has {len(projector)} channels, but the site '
                f'{student.shape[1]}'
            )
        weight = projector.to(student.dtype)
        student = torch.einsum('oc,nc...->no...', weight, student)
    # each channel of each image, or each row, is one of its own
    rows = len(student) * (student.shape[1] if student.ndim > 2 else 1)
    slices = [x.reshape(1, rows, -1 if rows else 0) for x in (student, teacher)]
    difference = standardized(slices[0]).sub_(standardized(slices[1]))
    return difference.square().sum() / max(difference.numel(), 1)


@MODELS.register_module()
class FeatureMSELoss(nn.Module):
    """Squared difference of normalised features: see :func:`feature_mse_loss`.

    It takes (N, C, H, W) or (N, C).

    Args:
        projector (int, optional): Channels of a learned 1x1 projector in front of the
            student's features. It begins as the identity, and trains with the run's
            optimizer. Defaults to None: no projector.

    Raises:
        ValueError: If the projector is not a whole number of at least 1.
    """

    def __init__(self, projector: int | None = None) -> None:
        super().__init__()
        self.projector: nn.Parameter | None = None
        if projector is not None:
            channels = check_whole('projector', projector, 1)
            self.projector = nn.Parameter(torch.eye(channels))

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        """Return the loss of one pair, whatever its numbers are."""
        return feature_mse_loss(student, teacher, projector=self.projector)
