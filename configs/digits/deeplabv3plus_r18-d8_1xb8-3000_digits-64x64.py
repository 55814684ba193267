# The same total length as two generations of 1,500 iterations, in one cosine.
_base_ = './deeplabv3plus_r18-d8_1xb8-1500_digits-64x64.py'
max_iters = 3000
train_cfg = dict(max_iters=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_iters, end=max_iters)
