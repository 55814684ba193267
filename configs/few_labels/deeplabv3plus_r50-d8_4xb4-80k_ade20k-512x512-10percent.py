_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
# the first tenth of the images has labels; there is no split that others use
train_dataloader = dict(dataset=dict(indices=2021))
hook = dict(type='mmselfdistill.EMATeacherHook')
hook.update(unlabeled=dict(data='data/ade/ADEChallengeData2016/images/training'))
default_hooks = dict(self_distill=hook)
