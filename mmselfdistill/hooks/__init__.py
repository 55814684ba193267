"""The hooks: when things happen in a Runner, and what is saved."""

from .ema_teacher_hook import EMATeacherHook
from .generation_hook import GenerationHook
from .self_distill_hook import SelfDistillHook
from .visualization_hook import DistillVisualizationHook

__all__ = [
    'DistillVisualizationHook',
    'EMATeacherHook',
    'GenerationHook',
    'SelfDistillHook',
]
