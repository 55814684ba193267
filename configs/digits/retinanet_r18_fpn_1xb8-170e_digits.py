# 100 scenes with labels, for about as long as the run with 1,000 others takes.
_base_ = './retinanet_r18_fpn_50e_digits.py'
max_epochs = 170
train_cfg = dict(max_epochs=max_epochs, val_interval=34)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(T_max=max_epochs, end=max_epochs)
train_dataloader = dict(batch_size=8, dataset=dict(indices=100))
