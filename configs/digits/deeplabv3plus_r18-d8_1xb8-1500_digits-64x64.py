_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    '../_base_/datasets/digits_segmentation.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/digits_1500.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(depth=18, stem_channels=16, base_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=128,
        channels=32,
        dilations=(1, 2, 3, 4),
        c1_in_channels=16,
        c1_channels=8,
        num_classes=11,
        norm_cfg=norm_cfg,
    ),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=11, norm_cfg=norm_cfg),
)
optim_wrapper = dict(optimizer=dict(lr=0.02))
