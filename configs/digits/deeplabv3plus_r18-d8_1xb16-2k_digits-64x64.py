# The same total length as two generations of 1,000 iterations, in one cosine.
_base_ = './deeplabv3plus_r18-d8_1xb16-1k_digits-64x64.py'
max_iters = 2000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_iters,
        eta_min_ratio=0.01,
        by_epoch=False,
        begin=0,
        end=max_iters,
    ),
]
