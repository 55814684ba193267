_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
default_hooks = dict(
    self_distill=dict(type='mmselfdistill.GenerationHook', generations=2)
)
