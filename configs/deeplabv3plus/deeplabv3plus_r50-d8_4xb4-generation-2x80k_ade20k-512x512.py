_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
default_hooks = dict(
    self_distill=dict(type='mmselfdistill.GenerationHook', generations=2)
)
