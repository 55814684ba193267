# A classifier of MMPretrain, which has to be installed.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    '../_base_/datasets/digits_imagenet.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(backbone=dict(base_channels=8, stem_channels=8), head=dict(in_channels=64))
max_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.005, weight_decay=0.05))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=max_epochs,
    ),
]
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=10, max_keep_ckpts=2)
)
