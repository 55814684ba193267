"""Pseudo labels: the teacher's decision as a label, where it is sure of it."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from mmselfdistill.errors import check_number

from .common import Loss, check_kind, in_full_precision


@in_full_precision
def pseudo_label_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = 'softmax',
    threshold: float = 0.95,
) -> Tensor:
    r"""How much less likely the teacher's decision is to the student than to itself.

    With :math:`p, q` the probabilities of teacher and student, and :math:`k` the class
    that the teacher finds likeliest, the loss of one position (a pixel, an anchor, a
    RoI) is

    .. math::
        [p_k \ge \tau] \log \frac{p_k}{q_k} \quad \text{(softmax), or} \quad
        \sum_c [a_c \ge \tau] \log \frac{a_c}{b_c} \quad \text{(sigmoid)}

    where :math:`a_c = \max(p_c, 1 - p_c)` is the teacher's yes or no to a class, and
    :math:`b_c` the student's probability of the same answer. The gradient is that of
    the cross-entropy with a hard label (FixMatch, arXiv 2001.07685), and positions of
    which the teacher is not sure have none. The teacher's own cross-entropy is taken
    off, so that the result is exactly 0 for equal logits. It is no distance: a student
    that is surer than the teacher makes it negative, and its gradient at equality pulls
    that way.

    Args:
        student (Tensor): Logits (N, C) or (N, C, H, W).
        teacher (Tensor): Logits, same shape. Gets no gradient.
        kind (str): 'softmax' or 'sigmoid': how logits become probabilities.
            Defaults to 'softmax'.
        threshold (float): :math:`\tau`, in [0, 1]. Defaults to 0.95.

    Returns:
        Tensor: (N) or (N, H, W) in float32, summed over classes; 0 where the teacher is
        not sure. A mean over it counts these positions too.

    Raises:
        ValueError: If the shapes differ, or the kind is another one.
    """
    check_kind('PseudoLabelLoss', kind, ('softmax', 'sigmoid'))
    if kind == 'softmax':
        label = teacher.argmax(1)
        own = F.cross_entropy(teacher, label, reduction='none')
        surprise = F.cross_entropy(student, label, reduction='none') - own
        return surprise * (own.neg().exp() >= threshold)
    answer = (teacher >= 0).to(teacher) * 2 - 1
    log_a = F.logsigmoid(answer * teacher)
    gap = log_a - F.logsigmoid(answer * student)
    return (gap * (log_a.exp() >= threshold)).sum(1)


@MODELS.register_module()
class PseudoLabelLoss(Loss):
    """Cross-entropy with the teacher's decision: see :func:`pseudo_label_loss`.

    Args:
        threshold (float): Positions count where the teacher's probability is at least
            this. Defaults to 0.95.

    Raises:
        ValueError: If the threshold is not in [0, 1].
    """

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        self.threshold = check_number('threshold', threshold, 0, 1)

    def forward(
        self, student: Tensor, teacher: Tensor, kind: str = 'softmax'
    ) -> Tensor:
        """Return the loss of each position."""
        return pseudo_label_loss(student, teacher, kind=kind, threshold=self.threshold)
