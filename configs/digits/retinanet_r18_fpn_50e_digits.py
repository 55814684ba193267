_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_50e.py',
]
model = dict(
    # small digits: the second stage keeps the first one's stride
    backbone=dict(
        depth=18,
        base_channels=16,
        strides=(1, 1, 2, 2),
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[16, 32, 64, 128],
        out_channels=32,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        # levels share the head: BatchNorm's running statistics would mix them
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(
            scales_per_octave=2, ratios=[1.0, 1.7], strides=[4, 8, 16]
        ),
        loss_bbox=dict(loss_weight=2.0),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.02))
