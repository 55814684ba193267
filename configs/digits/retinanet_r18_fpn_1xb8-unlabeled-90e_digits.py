# 100 scenes with labels, and a folder of others.
_base_ = './retinanet_r18_fpn_1xb8-170e_digits.py'
max_epochs = 90
train_cfg = dict(max_epochs=max_epochs, val_interval=18)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_epochs, end=max_epochs)
default_hooks = dict(
    self_distill=dict(
        type='mmselfdistill.EMATeacherHook',
        schedule=dict(begin=0.3, warmup=0.2),
        terms=dict(features=None, logits=dict(weight=4.0), boxes=dict(weight=1.0)),
        unlabeled=dict(data='data/digits/unlabeled2017'),
    )
)
