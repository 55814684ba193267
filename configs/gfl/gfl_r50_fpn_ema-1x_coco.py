_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
default_hooks = dict(self_distill=dict(type='mmselfdistill.EMATeacherHook'))
