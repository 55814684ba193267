"""Self-distillation for MMDetection and MMSegmentation: one hook, nothing else."""

from __future__ import annotations

from .compat import allow_mmengine_checkpoints, check_versions, name_our_configs
from .version import __version__

check_versions()
allow_mmengine_checkpoints()
name_our_configs()

from .hooks import EMATeacherHook, GenerationHook, SelfDistillHook  # noqa: E402

__all__ = ['EMATeacherHook', 'GenerationHook', 'SelfDistillHook', '__version__']
