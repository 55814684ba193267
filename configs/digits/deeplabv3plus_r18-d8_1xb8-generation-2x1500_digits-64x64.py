_base_ = './deeplabv3plus_r18-d8_1xb8-1500_digits-64x64.py'
default_hooks = dict(
    self_distill=dict(type='mmselfdistill.GenerationHook', generations=2)
)
