_base_ = './retinanet_r50_fpn_90k_coco-10percent.py'
labels = 'semi_anns/instances_train2017.1@1.json'
others = dict(ann_file='semi_anns/instances_train2017.1@1-unlabeled.json')
train_dataloader = dict(dataset=dict(ann_file=labels))
default_hooks = dict(self_distill=dict(unlabeled=dict(data=others)))
