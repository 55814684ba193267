_base_ = './retinanet_r18_fpn_50e_digits.py'
default_hooks = dict(self_distill=dict(type='mmselfdistill.EMATeacherHook'))
