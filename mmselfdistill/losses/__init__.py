"""Losses between one tensor of the student and the same one of the teacher.

Each is a pure function and a thin module in MMEngine's ``MODELS``. Called as
``loss(student, teacher, kind=...)``, it returns a plain divergence in float32 that is 0
when the two are equal: one number for each row, position or mask, or a scalar where
rows cannot be told apart. What counts, and how much, is applied by
:func:`.common.reduced`. The modules check their settings; the functions do not.
"""

from .box_distill import BoxDistillLoss, box_distill_loss
from .feature_mse import FeatureMSELoss, feature_mse_loss
from .info_nce import InfoNCELoss, info_nce_loss
from .mask_distill import MaskDistillLoss, mask_distill_loss
from .pkd import PKDLoss, pkd_loss
from .pseudo_label import PseudoLabelLoss, pseudo_label_loss
from .soft_target import SoftTargetLoss, soft_target_loss

__all__ = [
    'BoxDistillLoss',
    'FeatureMSELoss',
    'InfoNCELoss',
    'MaskDistillLoss',
    'PKDLoss',
    'PseudoLabelLoss',
    'SoftTargetLoss',
    'box_distill_loss',
    'feature_mse_loss',
    'info_nce_loss',
    'mask_distill_loss',
    'pkd_loss',
    'pseudo_label_loss',
    'soft_target_loss',
]
