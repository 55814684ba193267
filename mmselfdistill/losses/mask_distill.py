"""Instance masks: the teacher's mask as target, pixel by pixel."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor

from mmselfdistill.errors import check_number

from .common import Loss, bernoulli_kl, check_kind, in_full_precision


@in_full_precision
def mask_distill_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = 'mask',
    temperature: float = 1.0,
) -> Tensor:
    r"""Divergence of the student's instance masks from the teacher's.

    The loss of one mask is

    .. math::
        \frac{T^2}{H W} \sum_{h, w}
        m \log \frac{m}{q} + (1 - m) \log \frac{1 - m}{1 - q}

    with :math:`m, q` the sigmoid of the teacher's and the student's logits
    divided by :math:`T`: the binary cross-entropy that mask heads train with,
    less the teacher's entropy (arXiv 1503.02531).

    Args:
        student (Tensor): Mask logits (P, 1, H, W) or (P, H, W) of P instances,
            each of its labelled class.
        teacher (Tensor): Logits, same shape. Gets no gradient.
        kind (str): 'mask'. Defaults to 'mask'.
        temperature (float): :math:`T`, above 0. Defaults to 1.0.

    Returns:
        Tensor: (P) in float32, the mean over a mask's pixels.

    Raises:
        ValueError: If the shapes differ, or the kind is another one.
    """
    check_kind('MaskDistillLoss', kind, ('mask',))
    divergence = bernoulli_kl(student, teacher, temperature)
    pixels = divergence.flatten(1)
    return pixels.sum(1) / max(pixels.shape[1], 1)


@MODELS.register_module()
class MaskDistillLoss(Loss):
    """Divergence of instance masks: see :func:`mask_distill_loss`.

    Args:
        temperature (float): Softens both masks. Defaults to 1.0.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)

    def forward(self, student: Tensor, teacher: Tensor, kind: str = 'mask') -> Tensor:
        """Return the divergence of each mask."""
        return mask_distill_loss(
            student, teacher, kind=kind, temperature=self.temperature
        )
