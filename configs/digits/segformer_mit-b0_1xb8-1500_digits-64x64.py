_base_ = [
    'mmseg::_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/digits_segmentation.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/digits_1500.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(embed_dims=16, num_heads=[1, 2, 4, 8]),
    decode_head=dict(
        in_channels=[16, 32, 64, 128], channels=64, num_classes=11, norm_cfg=norm_cfg
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
