"""Instance masks: the teacher's mask as target, pixel by pixel."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.errors import check_number

from .common import bernoulli_kl, in_full_precision, mean, weighted_mean


@in_full_precision
def mask_distill_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    confidence: Tensor | None = None,
) -> Tensor:
    r"""Divergence of the student's instance masks from the teacher's.

    .. math::
        \frac{T^2}{P H W} \sum_{p, h, w}
        m \log \frac{m}{q} + (1 - m) \log \frac{1 - m}{1 - q}

    with :math:`m, q` the sigmoid of the teacher's and the student's logits
    divided by :math:`T`: the binary cross-entropy that mask heads train with,
    less the teacher's entropy (arXiv 1503.02531).

    Args:
        student (Tensor): Mask logits (P, 1, H, W) or (P, H, W) of P instances,
            each of its labelled class.
        teacher (Tensor): Logits, same shape. Gets no gradient.
        temperature (float): :math:`T`, above 0. Defaults to 1.0.
        confidence (Tensor, optional): (P), not negative: the weight of each
            instance; the sum is divided by theirs, at least 1. Defaults to
            None: a plain mean over instances.

    Returns:
        Tensor: A scalar in float32, the mean over pixels and instances; 0 when
        there is no instance.

    Raises:
        ValueError: If the shapes differ.
    """
    divergence = bernoulli_kl(student, teacher, temperature)
    if confidence is None:
        return mean(divergence)
    return weighted_mean('confidence', divergence.flatten(1).mean(1), confidence)


@MODELS.register_module()
class MaskDistillLoss(nn.Module):
    """Divergence of instance masks: see :func:`mask_distill_loss`.

    Args:
        temperature (float): Softens both masks. Defaults to 1.0.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        confidence: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the loss of one pair; other context is not used."""
        return mask_distill_loss(
            student, teacher, temperature=self.temperature, confidence=confidence
        )

    def extra_repr(self) -> str:
        """Show the settings in a printed model."""
        return f'temperature={self.temperature:g}'
