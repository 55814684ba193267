"""Data sets of a few images, and configs that train on them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmselfdistill.zoo import zoo_folder

DETECTOR = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py',
          'mmdet::_base_/default_runtime.py']
classes = ('a', 'b')
model = dict(
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False,
                  init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0))
pipeline = [dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', data_root='DATA', ann_file='coco.json',
                 metainfo=dict(classes=classes), data_prefix=dict(img='images/'),
                 pipeline=pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root='DATA', ann_file='coco.json',
                 metainfo=dict(classes=classes), data_prefix=dict(img='images/'),
                 test_mode=True, pipeline=pipeline))
test_evaluator = dict(type='CocoMetric', ann_file='DATA/coco.json', metric='bbox')
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


SEGMENTOR = """
_base_ = ['MMSEG/_base_/models/fcn_r50-d8.py', 'MMSEG/_base_/default_runtime.py']
norm_cfg = dict(type='BN')
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(depth=18, base_channels=8, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=64, channels=16, num_classes=150, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=150,
                        norm_cfg=norm_cfg))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='ADE20KDataset', data_root='DATA',
                 data_prefix=dict(img_path='images', seg_map_path='labels'),
                 pipeline=[dict(type='LoadImageFromFile'),
                           dict(type='LoadAnnotations', reduce_zero_label=True),
                           dict(type='PackSegInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=8)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8))
"""


def write_data(root: Path) -> None:
    """Write four images of 64 px with boxes (COCO) and label maps (ADE20K)."""
    rng = np.random.RandomState(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        x, y, w, h = (int(v) for v in rng.randint(8, 32, 4))
        label = number % 2 + 1
        image = rng.randint(0, 64, (64, 64, 3), dtype=np.uint8)
        labels = np.full((64, 64), 3, dtype=np.uint8)
        image[y : y + h, x : x + w] = 200 * (label - 1)
        labels[y : y + h, x : x + w] = label
        cv2.imwrite(str(root / 'images' / f'{number}.jpg'), image)
        cv2.imwrite(str(root / 'labels' / f'{number}.png'), labels)
        images.append(dict(id=number, file_name=f'{number}.jpg', width=64, height=64))
        annotations.append(
            dict(
                id=number,
                image_id=number,
                category_id=label,
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
            )
        )
    categories = [dict(id=i, name=name) for i, name in ((1, 'a'), (2, 'b'))]
    coco = dict(images=images, annotations=annotations, categories=categories)
    (root / 'coco.json').write_text(json.dumps(coco))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    write_data(root)
    for name, text in (('mmdet', DETECTOR), ('mmseg', SEGMENTOR)):
        text = text.replace('DATA', str(root))
        # OneDL's MMEngine does not know its own mmseg:: until we are imported
        text = text.replace('MMSEG', str(zoo_folder('mmseg')))
        (root / f'{name}.py').write_text(text)
    return root
