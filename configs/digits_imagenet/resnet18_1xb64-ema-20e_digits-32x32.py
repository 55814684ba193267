_base_ = './resnet18_1xb64-20e_digits-32x32.py'
default_hooks = dict(self_distill=dict(type='mmselfdistill.EMATeacherHook'))
