_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
default_hooks = dict(
    self_distill=dict(type='mmselfdistill.GenerationHook', generations=2)
)
