"""Self-distillation for MMDetection and MMSegmentation: one hook, nothing else."""

from __future__ import annotations

from .compat import allow_mmengine_checkpoints, check_versions, name_our_configs
from .version import __version__

check_versions()
allow_mmengine_checkpoints()
name_our_configs()

from .hooks import (  # noqa: E402
    DistillVisualizationHook,
    EMATeacherHook,
    GenerationHook,
    SelfDistillHook,
)

__all__ = [
    'DistillVisualizationHook',
    'EMATeacherHook',
    'GenerationHook',
    'SelfDistillHook',
    '__version__',
]
