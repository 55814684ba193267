_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
# every tenth image has labels: they are sorted by scene. There is no usual split
train_dataloader = dict(dataset=dict(indices=list(range(0, 20210, 10))))
hook = dict(type='mmselfdistill.EMATeacherHook')
hook.update(unlabeled=dict(data='data/ade/ADEChallengeData2016/images/training'))
default_hooks = dict(self_distill=hook)
