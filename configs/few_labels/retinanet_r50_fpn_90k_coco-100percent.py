_base_ = 'mmdet::retinanet/retinanet_r50_fpn_90k_coco.py'
hook = dict(type='mmselfdistill.EMATeacherHook', horizon=0.01)
hook.update(schedule=dict(begin=0.3, warmup=0.2))
hook.update(terms=dict(features=None, logits=dict(weight=4.0), boxes=dict(weight=1.0)))
hook.update(unlabeled=dict(data='data/coco/unlabeled2017'))
default_hooks = dict(self_distill=hook)
