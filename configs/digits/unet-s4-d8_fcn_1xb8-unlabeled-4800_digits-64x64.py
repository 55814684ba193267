# 100 scenes with labels, and a folder of others.
_base_ = './unet-s4-d8_fcn_1xb8-9000_digits-64x64.py'
max_iters = 4800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 6)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_iters, end=max_iters)
default_hooks = dict(
    self_distill=dict(
        type='mmselfdistill.EMATeacherHook',
        schedule=dict(begin=0.3, warmup=0.2),
        terms=dict(features=None, logits=None),
        teacher_norm='running',
        unlabeled=dict(data='data/digits/unlabeled2017'),
    )
)
