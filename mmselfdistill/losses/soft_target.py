"""Soft targets: the teacher's class probabilities as labels."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.errors import check_choice, check_number

from .common import (
    bernoulli_kl,
    categorical_kl,
    checked_weights,
    in_full_precision,
    weighted_mean,
)


@in_full_precision
def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.0,
    activation: str = 'softmax',
    average_over: str = 'positions',
    valid: Tensor | None = None,
) -> Tensor:
    r"""Divergence of the student's class probabilities from the teacher's.

    With :math:`p, q` the probabilities of teacher and student, softened by the
    temperature :math:`T`, the loss of one position (a pixel, an anchor, a RoI)
    is

    .. math::
        T^2 \sum_c p_c \log \frac{p_c}{q_c} \quad \text{(softmax), or} \quad
        T^2 \sum_c |p_c - q_c|^\beta \left( p_c \log \frac{p_c}{q_c}
        + (1 - p_c) \log \frac{1 - p_c}{1 - q_c} \right) \quad \text{(sigmoid)}

    and the result is its mean over positions, or its sum over them divided by
    the teacher's positives, so that a background of any size does not thin out
    the few positions that matter. :math:`T^2` keeps the size of the gradient
    (arXiv 1503.02531); :math:`|p - q|^\beta` is the quality-focal factor
    (arXiv 2006.04388).

    Args:
        student (Tensor): Logits (N, C) or (N, C, H, W).
        teacher (Tensor): Logits, same shape. Gets no gradient.
        temperature (float): :math:`T`, above 0. Defaults to 1.0.
        beta (float): :math:`\beta`, at least 0; a softmax does not use it.
            Defaults to 0.0.
        activation (str): 'softmax' or 'sigmoid': how logits become
            probabilities. Defaults to 'softmax'.
        average_over (str): 'positions', or 'positives' for dense heads:
            divides by a soft count of the teacher's positives, at least 1. A
            position counts as its largest sigmoid probability, or as one minus
            the probability of the background, which a softmax head has as its
            last class; both at temperature 1. Defaults to 'positions'.
        valid (Tensor, optional): (N) or (N, H, W), boolean or a weight:
            positions at 0 are ignored, in the sum and in the count. Defaults
            to None: all are valid.

    Returns:
        Tensor: A scalar in float32; 0 where student and teacher agree, or
        where there is no position.

    Raises:
        ValueError: If shapes do not fit, or a choice is unknown.
    """
    check_choice('activation', activation, ('softmax', 'sigmoid'))
    check_choice('average_over', average_over, ('positions', 'positives'))
    if activation == 'softmax':
        divergence = categorical_kl(student, teacher, temperature, dim=1)
    else:
        divergence = bernoulli_kl(student, teacher, temperature, beta).sum(1)

    if average_over == 'positions':
        return weighted_mean('valid', divergence, valid)
    positives = _positives(teacher, activation)
    if valid is not None:
        weights = checked_weights('valid', divergence, valid)
        divergence, positives = divergence * weights, positives * weights
    return divergence.sum() / positives.sum().clamp(min=1.0)


def _positives(teacher: Tensor, activation: str) -> Tensor:
    if activation == 'softmax':
        return 1 - teacher.softmax(1)[:, -1]
    return teacher.amax(1).sigmoid()


@MODELS.register_module()
class SoftTargetLoss(nn.Module):
    """Divergence of class probabilities: see :func:`soft_target_loss`.

    Args:
        temperature (float): Softens both distributions. Defaults to 1.0.
        beta (float): Exponent of the quality-focal factor on sigmoid heads; 0
            leaves it out. Defaults to 0.0.

    Raises:
        ValueError: If the temperature is not above 0, or beta below 0.
    """

    def __init__(self, temperature: float = 1.0, beta: float = 0.0) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)
        self.beta = check_number('beta', beta, 0)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        activation: str = 'softmax',
        average_over: str = 'positions',
        valid: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the loss of one pair; other context is not used."""
        return soft_target_loss(
            student,
            teacher,
            temperature=self.temperature,
            beta=self.beta,
            activation=activation,
            average_over=average_over,
            valid=valid,
        )

    def extra_repr(self) -> str:
        """Show the settings in a printed model."""
        return f'temperature={self.temperature:g}, beta={self.beta:g}'
