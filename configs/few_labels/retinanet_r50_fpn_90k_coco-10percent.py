_base_ = './retinanet_r50_fpn_90k_coco-100percent.py'
labels = 'semi_anns/instances_train2017.1@10.json'
others = dict(
    _delete_=True,
    type='CocoDataset',
    data_root='data/coco/',
    ann_file='semi_anns/instances_train2017.1@10-unlabeled.json',
    data_prefix=dict(img='train2017/'),
)
train_dataloader = dict(dataset=dict(ann_file=labels))
default_hooks = dict(self_distill=dict(unlabeled=dict(data=others)))
