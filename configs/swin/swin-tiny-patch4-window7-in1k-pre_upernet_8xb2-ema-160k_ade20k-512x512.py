_base_ = (
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
)
default_hooks = dict(self_distill=dict(type='mmselfdistill.EMATeacherHook'))
