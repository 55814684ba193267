# 100 scenes with labels, for about as long as the run with 1,000 others takes.
_base_ = './unet-s4-d8_fcn_1xb8-1500_digits-64x64.py'
max_iters = 9000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 6)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_iters, end=max_iters)
train_dataloader = dict(dataset=dict(indices=100))
