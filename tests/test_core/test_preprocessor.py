"""The preprocessor that makes batches of images without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import TRANSFORMS, init_default_scope
from torch import nn

from mmselfdistill.core.preprocessor import complete, preprocessor_of


class Outer(nn.Module):
    """A model that trains another one, as a tracker or a semi-supervised detector."""

    def __init__(self, outer: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.data_preprocessor = outer
        self.detector = nn.Module()
        self.detector.data_preprocessor = inner


def test_that_of_the_trained_model_or_of_what_holds_it() -> None:
    init_default_scope('mmdet')
    from mmdet.models import MultiBranchDataPreprocessor

    own, outer = DetDataPreprocessor(), DetDataPreprocessor()
    config = dict(type='DetDataPreprocessor', pad_size_divisor=32)
    branches = MultiBranchDataPreprocessor(config)
    for model, divisor in (
        (Outer(outer, own), own.pad_size_divisor),
        (Outer(outer, BaseDataPreprocessor()), outer.pad_size_divisor),
        # its own wants images by branch
        (Outer(branches, BaseDataPreprocessor()), 32),
    ):
        found: Any = preprocessor_of(model, model.detector)
        batch = dict(inputs=[torch.zeros(3, 30, 31)], data_samples=[DetDataSample()])
        size = tuple(found(batch, True)['inputs'].shape[-2:])
        assert size == ((32, 32) if divisor == 32 else (30, 31))


def test_what_draws_is_left_out_of_a_copy() -> None:
    init_default_scope('mmdet')
    steps: list[Any] = [
        dict(type='BatchSyncRandomResize', random_size_range=(64, 128)),
        dict(type='BatchFixedSizePad', size=(48, 64)),
    ]
    student = Outer(DetDataPreprocessor(), DetDataPreprocessor(batch_augments=steps))
    found: Any = preprocessor_of(student, student.detector)
    assert [type(each).__name__ for each in found.batch_augments] == [
        'BatchFixedSizePad'
    ]
    own: Any = student.detector.data_preprocessor
    assert len(own.batch_augments) == 2


@pytest.mark.parametrize(
    ('step', 'size'),
    [
        (dict(type='BatchFixedSizePad', size=(48, 64), pad_mask=True), (48, 64)),
        (dict(type='BatchFixedSizePad', size=(48, 64), pad_seg=True), (48, 64)),
        (dict(type='BatchResize', scale=(64, 64), pad_size_divisor=1), (32, 64)),
    ],
)
def test_what_is_kept_is_given_annotations_without_objects(
    step: Any, size: Any
) -> None:
    init_default_scope('mmdet')
    pack: Any = TRANSFORMS.build(dict(type='PackDetInputs', meta_keys=()))
    packed = pack(dict(img=np.zeros((24, 48, 3), np.uint8)))
    packed['data_samples'].set_metainfo(dict(img_shape=(24, 48)))
    own = DetDataPreprocessor(pad_mask=True, batch_augments=[step])
    student = Outer(own, own)
    found: Any = preprocessor_of(student, student.detector)
    batch = {key: [value] for key, value in packed.items()}
    complete(found, batch)
    made = found(batch, True)
    assert tuple(made['inputs'].shape[-2:]) == size
    objects = made['data_samples'][0].gt_instances
    assert objects.bboxes.shape == (0, 4) and len(objects.masks) == 0
