"""The preprocessor of a model, as it makes batches of images without labels."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.model import BaseDataPreprocessor
from torch import nn

from mmselfdistill.families import find_plan
from mmselfdistill.images.empty import add_nothing

# MMDetection's batch augmentations that draw nothing
_FIXED = ('BatchFixedSizePad', 'BatchResize')


def preprocessor_of(student: Any, model: Any) -> Any:
    """Return a model's preprocessor, without batch augmentations that draw.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
        model (nn.Module): The one that is trained: itself, or one that it holds.
    """
    found = _found(student, model)
    preprocessor = copy.copy(found)
    fixed, others = _augments(found)
    if others:
        # a copy shares its modules with the student's, and these may be one
        preprocessor._modules = found._modules.copy()
        preprocessor.batch_augments = nn.ModuleList(fixed) if fixed else None
    return preprocessor


def complete(preprocessor: Any, batch: Any) -> None:
    """Add empty annotations where batch augmentations will change those too.

    Args:
        preprocessor (nn.Module): As :func:`preprocessor_of` returns it.
        batch (dict): Images and their data samples, in whose pipeline may be no
            ``LoadAnnotations``.
    """
    if _augments(preprocessor)[0]:
        for image, sample in zip(batch['inputs'], batch['data_samples']):
            add_nothing(image, sample)


def random_augments(student: Any) -> list[str]:
    """Return the types of a model's batch augmentations that are left out here."""
    model = student.get_submodule(find_plan(student).inner)
    _, left_out = _augments(_found(student, model))
    return [type(each).__name__ for each in left_out]


def _found(student: Any, model: Any) -> Any:
    own = model.data_preprocessor
    if type(own) is not BaseDataPreprocessor:
        return own
    # of a tracker's detector it does nothing: the tracker's takes images too, and one
    # for several branches holds one that does
    outer = student.data_preprocessor
    return getattr(outer, 'data_preprocessor', outer)


def _augments(preprocessor: Any) -> tuple[list[Any], list[Any]]:
    """Return what is applied to whole batches: what draws nothing, and the rest.

    The rest draws random numbers, may keep them for the next batch with labels, and may
    mix labels.
    """
    found = getattr(preprocessor, 'batch_augments', None)
    listed = found if isinstance(found, nn.ModuleList) else filter(None, [found])
    fixed: list[Any] = []
    others: list[Any] = []
    for each in listed:
        (fixed if type(each).__name__ in _FIXED else others).append(each)
    return fixed, others
