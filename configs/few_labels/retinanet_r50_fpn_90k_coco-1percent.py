_base_ = 'mmdet::retinanet/retinanet_r50_fpn_90k_coco.py'
labels = 'semi_anns/instances_train2017.1@1.json'
others = dict(
    type='CocoDataset',
    data_root='data/coco/',
    ann_file='semi_anns/instances_train2017.1@1-unlabeled.json',
    data_prefix=dict(img='train2017/'),
)
train_dataloader = dict(dataset=dict(ann_file=labels))
hook = dict(type='mmselfdistill.EMATeacherHook', horizon=0.01)
hook.update(schedule=dict(begin=0.3, warmup=0.2), unlabeled=dict(data=others))
hook.update(terms=dict(features=None, logits=dict(weight=4.0), boxes=dict(weight=1.0)))
default_hooks = dict(self_distill=hook)
