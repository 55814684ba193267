# The same total length as two generations of 50 epochs, in one cosine.
_base_ = './retinanet_r18_fpn_50e_digits.py'
max_epochs = 100
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_epochs, end=max_epochs)
