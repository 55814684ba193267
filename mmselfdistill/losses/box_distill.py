"""Boxes: the teacher's boxes as targets, weighted by how sure it is of them."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor

from mmselfdistill.errors import check_number

from .common import Loss, categorical_kl, check_kind, in_full_precision

# a product of two of these is far below the largest float
_FARTHEST = 1e9
_BY_L1 = ('offsets', 'cxcywh')


@in_full_precision
def box_distill_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = 'offsets',
    temperature: float = 10.0,
) -> Tensor:
    r"""Difference of the student's boxes from the teacher's.

    The loss of one box is

    - for 'bins', the mean over the four sides of
      :math:`T^2 \mathrm{KL}(p \| q)` of the distributions over distance, a sum
      over the bins (LD, arXiv 2102.12252, whose code takes the mean over them:
      (reg_max + 1) times less);
    - for 'offsets' and 'cxcywh', the mean over the four numbers of :math:`|s - t|`;
    - for 'sides', :math:`1 - \mathrm{GIoU}` of the two boxes
      (arXiv 1902.09630), of distances up to :math:`10^9`.

    Args:
        student (Tensor): 'bins': (N, 4 * (reg_max + 1)) logits, side by side;
            'offsets': (N, 4) encoded offsets; 'cxcywh': (N, 4) centre and size, in
            parts of the image; 'sides': (N, 4) left, top, right, bottom from one
            point, in any unit of length in which an area is far above
            :math:`10^{-7}`.
        teacher (Tensor): Same shape and kind. Gets no gradient.
        kind (str): One of these. Defaults to 'offsets'.
        temperature (float): :math:`T` of the bins, above 0; other kinds do not
            use it. Defaults to 10.0.

    Returns:
        Tensor: (N) in float32; 0 where the boxes are equal.

    Raises:
        ValueError: If shapes do not fit, or the kind is another one.
    """
    check_kind('BoxDistillLoss', kind, ('bins', 'sides', *_BY_L1))
    _check_columns(student, kind)
    if kind == 'bins':
        sides = (len(student), 4, student.shape[1] // 4)
        student, teacher = student.reshape(sides), teacher.reshape(sides)
        return categorical_kl(student, teacher, temperature, dim=-1).mean(-1)
    if kind in _BY_L1:
        return (student - teacher).abs().mean(-1)
    return _giou_loss(student, teacher)


def _check_columns(boxes: Tensor, kind: str) -> None:
    columns = boxes.shape[1] if boxes.ndim == 2 else 0
    if kind == 'bins':
        fits, wanted = columns >= 8 and columns % 4 == 0, '(N, 4 * (reg_max + 1))'
    else:
        fits, wanted = columns == 4, '(N, 4)'
    if not fits:
        raise ValueError(
            f'{kind!r}: expected boxes of shape {wanted}, but got {tuple(boxes.shape)}'
        )


def _giou_loss(student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clamp(-_FARTHEST, _FARTHEST)
    teacher = teacher.clamp(-_FARTHEST, _FARTHEST)
    inner = _area(torch.minimum(student, teacher))
    outer = _area(torch.maximum(student, teacher))
    union = _area(student) + _area(teacher) - inner
    tiny = torch.finfo(student.dtype).eps
    # 1 - IoU + gap: this form is 0 for equal boxes, empty ones included
    missed = (union - inner) / union.clamp(min=tiny)
    gap = (outer - union) / outer.clamp(min=tiny)
    return missed + gap


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(-1)
    return (left + right).clamp(min=0) * (top + bottom).clamp(min=0)


@MODELS.register_module()
class BoxDistillLoss(Loss):
    """Difference of boxes, by how a head encodes them: see :func:`box_distill_loss`.

    Args:
        temperature (float): Softens the distributions of 'bins'; other kinds do
            not use it. Defaults to 10.0.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        self.temperature = check_number('temperature', temperature, 0, above_low=True)

    def forward(
        self, student: Tensor, teacher: Tensor, kind: str = 'offsets'
    ) -> Tensor:
        """Return the difference of each box."""
        return box_distill_loss(
            student, teacher, kind=kind, temperature=self.temperature
        )
