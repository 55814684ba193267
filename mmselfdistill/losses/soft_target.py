"""Soft targets: the teacher's class probabilities as labels."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor

from mmselfdistill.errors import check_number

from .common import Loss, bernoulli_kl, categorical_kl, check_kind, in_full_precision


@in_full_precision
def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = 'softmax',
    temperature: float = 1.0,
    beta: float = 0.0,
    sharpen: float = 1.0,
) -> Tensor:
    r"""Divergence of the student's class probabilities from the teacher's.

    With :math:`p, q` the probabilities of teacher and student, softened by the
    temperature :math:`T`, the loss of one position (a pixel, an anchor, a RoI)
    is

    .. math::
        T^2 \sum_c p_c \log \frac{p_c}{q_c} \quad \text{(softmax), or} \quad
        T^2 \sum_c |p_c - q_c|^\beta \left( p_c \log \frac{p_c}{q_c}
        + (1 - p_c) \log \frac{1 - p_c}{1 - q_c} \right) \quad \text{(sigmoid)}

    :math:`T^2` keeps the size of the gradient (arXiv 1503.02531);
    :math:`|p - q|^\beta` is the quality-focal factor (arXiv 2006.04388).

    With ``sharpen`` :math:`s > 1` the target is not :math:`p` but :math:`\tilde p`, of
    the teacher's logits times :math:`s`, which is surer of the same class (MixMatch,
    arXiv 1905.02249, whose temperature is :math:`1/s`). From the divergence to it, that
    of the teacher itself is taken off, so that the result is exactly 0 for equal
    logits. It is no distance then: a student that is surer than the teacher makes it
    negative, and its gradient at equality pulls that way.

    Args:
        student (Tensor): Logits (N, C) or (N, C, H, W).
        teacher (Tensor): Logits, same shape. Gets no gradient.
        kind (str): 'softmax' or 'sigmoid': how logits become probabilities.
            Defaults to 'softmax'.
        temperature (float): :math:`T`, above 0. Defaults to 1.0.
        beta (float): :math:`\beta`, at least 0; a softmax does not use it.
            Defaults to 0.0.
        sharpen (float): :math:`s`, at least 1. Defaults to 1.0.

    Returns:
        Tensor: (N) or (N, H, W) in float32, summed over classes; 0 where student and
        teacher agree.

    Raises:
        ValueError: If the shapes differ, or the kind is another one.
    """
    check_kind('SoftTargetLoss', kind, ('softmax', 'sigmoid'))
    target = teacher if sharpen == 1 else teacher * sharpen

    def divergence(logits: Tensor) -> Tensor:
        if kind == 'softmax':
            return categorical_kl(logits, target, temperature, dim=1)
        return bernoulli_kl(logits, target, temperature, beta).sum(1)

    loss = divergence(student)
    return loss if sharpen == 1 else loss - divergence(teacher)


@MODELS.register_module()
class SoftTargetLoss(Loss):
    """Divergence of class probabilities: see :func:`soft_target_loss`.

    Args:
        temperature (float): Softens both distributions. Defaults to 1.0.
        beta (float): Exponent of the quality-focal factor on sigmoid heads; 0
            leaves it out. Defaults to 0.0.
        sharpen (float): The target's logits are the teacher's times this. Defaults to
            1.0.

    Raises:
        ValueError: If the temperature is not above 0, beta below 0, or sharpen below 1.
    """

    def __init__(
        self, temperature: float = 1.0, beta: float = 0.0, sharpen: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)
        self.beta = check_number('beta', beta, 0)
        self.sharpen = check_number('sharpen', sharpen, 1)

    def forward(
        self, student: Tensor, teacher: Tensor, kind: str = 'softmax'
    ) -> Tensor:
        """Return the divergence of each position."""
        return soft_target_loss(
            student,
            teacher,
            kind=kind,
            temperature=self.temperature,
            beta=self.beta,
            sharpen=self.sharpen,
        )
