"""Annotations of an image on which there is nothing."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor


def add_nothing(image: Tensor, sample: Any) -> None:
    """Add the annotations that a detector's data sample lacks, without any object.

    Args:
        image (Tensor): (C, H, W).
        sample (DetDataSample): As ``PackDetInputs`` makes it.
    """
    from mmdet.structures.mask import BitmapMasks

    height, width = image.shape[-2:]
    for objects in (sample.gt_instances, sample.ignored_instances):
        if 'bboxes' not in objects:
            objects.bboxes = torch.zeros(0, 4)
    if 'masks' not in sample.gt_instances:
        sample.gt_instances.masks = BitmapMasks([], height, width)
    if 'gt_sem_seg' not in sample:
        nothing = torch.zeros(1, height, width, dtype=torch.uint8)
        sample.gt_sem_seg = PixelData(sem_seg=nothing)
