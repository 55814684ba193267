"""RoI heads: the student's RoIs in both, and the class that each box and mask has."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import Plan, find_plan

FASTER = 'faster-rcnn_r18_fpn_50e_digits'
MASK = 'mask-rcnn_r18_fpn_50e_digits'
CLASSES = 10
DENSE = ('features', 'logits', 'boxes')
RPN = ('proposals', 'proposal_boxes')


@pytest.fixture(scope='module')
def mask_rcnn(digits: Callable[..., Any], iterate: Callable[..., Any]) -> Any:
    return iterate(digits(MASK))


def teachers_boxes(iteration: Any) -> tuple[Any, Tensor]:
    """Let the teacher's RoI head look at the student's RoIs, outside of a replay."""
    (call, _) = iteration.of('roi_head._bbox_forward')[0]
    rois: Tensor = call.args[-1]
    assert rois.shape[1] == 5
    with torch.no_grad():
        feats = iteration.teacher.extract_feat(iteration.data['inputs'])
        return iteration.teacher.roi_head._bbox_forward(feats, rois), rois


def test_both_sides_score_the_students_rois(mask_rcnn: Any) -> None:
    (pair,) = mask_rcnn.read('logits')
    results, rois = teachers_boxes(mask_rcnn)
    assert pair.student.shape == (len(rois), CLASSES + 1)
    assert torch.equal(pair.teacher, results['cls_score'])
    assert pair.student.requires_grad
    assert pair.kind == 'softmax'
    # the background is trained as well: all RoIs count alike
    assert pair.weight is None and pair.norm is None
    # the student's own scores of its own RoIs
    feats = mask_rcnn.model.extract_feat(mask_rcnn.data['inputs'])
    ours = mask_rcnn.model.roi_head._bbox_forward(feats, rois)
    assert torch.equal(pair.student, ours['cls_score'])


def test_boxes_are_of_the_teachers_likeliest_object(mask_rcnn: Any) -> None:
    (pair,) = mask_rcnn.read('boxes')
    ours = mask_rcnn.of('roi_head._bbox_forward')[0][0].output['bbox_pred']
    results, rois = teachers_boxes(mask_rcnn)
    assert ours.shape == (len(rois), 4 * CLASSES)
    chosen = set()
    for roi, logits in enumerate(results['cls_score'].tolist()):
        # the background, the last class, has no box
        best = max(range(CLASSES), key=logits.__getitem__)
        chosen.add(best)
        columns = slice(4 * best, 4 * best + 4)
        assert torch.equal(pair.student[roi], ours[roi, columns])
        assert torch.equal(pair.teacher[roi], results['bbox_pred'][roi, columns])
    assert len(chosen) > 1
    odds = results['cls_score'].double().exp()
    objects = odds[:, :CLASSES].sum(1) / odds.sum(1)
    torch.testing.assert_close(pair.weight.double(), objects, rtol=1e-5, atol=1e-6)
    assert pair.norm is None
    assert pair.kind == 'offsets'


def test_a_background_roi_still_has_the_box_of_an_object(mask_rcnn: Any) -> None:
    head = mask_rcnn.teacher.roi_head.bbox_head.fc_cls
    with torch.no_grad():
        before = head.bias.clone()
        head.bias[CLASSES] += 1e4
    results, _ = teachers_boxes(mask_rcnn)
    with torch.no_grad():
        head.bias.copy_(before)
    assert set(results['cls_score'].argmax(1).tolist()) == {CLASSES}
    call = mask_rcnn.of('roi_head._bbox_forward')[0][1]
    kept, call.output['cls_score'] = call.output['cls_score'], results['cls_score']
    (pair,) = mask_rcnn.read('boxes')
    call.output['cls_score'] = kept
    objects = results['cls_score'][:, :CLASSES].tolist()
    for roi, logits in enumerate(objects):
        first = 4 * max(range(CLASSES), key=logits.__getitem__)
        boxes = results['bbox_pred'][roi, first : first + 4]
        assert torch.equal(pair.teacher[roi], boxes)
    assert torch.equal(pair.weight, torch.zeros(len(kept)))


def test_a_semantic_head_has_its_own_ignored_label(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo('mmdet::htc/htc_r50_fpn_1x_coco.py')
    head = model.roi_head.semantic_head
    for ignored in (255, 1):
        head.criterion.ignore_index = ignored
        (pair,) = iterate(model, batch).read('semantic')
        labels = torch.stack([s.gt_sem_seg.sem_seg for s in batch['data_samples']])
        step = labels.shape[2] // pair.student.shape[2]
        expected = (labels[:, 0, ::step, ::step] != ignored).float()
        assert torch.equal(pair.weight, expected)
        assert (expected.mean() < 1) == (ignored == 1)


def test_class_agnostic_boxes_are_taken_whole(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(digits(FASTER, roi_head__bbox_head__reg_class_agnostic=True))
    (pair,) = iteration.read('boxes')
    results, rois = teachers_boxes(iteration)
    assert pair.student.shape == (len(rois), 4)
    assert torch.equal(pair.teacher, results['bbox_pred'])
    sites = {site.name for site in iteration.plan.sites}
    assert sites == default_terms(iteration.plan).keys() == {*DENSE, *RPN}


def observed(plan: Plan) -> list[str]:
    return [seam.path for seam in plan.seams if not seam.repeat]


def sampled_labels(iteration: Any, stage: int = 0) -> list[int]:
    """Collect the labels of the positives, image by image, from the mask loss."""
    path = observed(iteration.plan)[stage]
    ((call, _),) = iteration.of(path)
    lists = (v for v in (*call.args, *call.kwargs.values()) if isinstance(v, list))
    results = next(v for v in lists if hasattr(v[0], 'pos_gt_labels'))
    return [int(label) for result in results for label in result.pos_gt_labels]


def test_masks_are_of_the_labelled_class(mask_rcnn: Any) -> None:
    (pair,) = mask_rcnn.read('masks')
    labels = sampled_labels(mask_rcnn)
    assert len(labels) > 3 and len(set(labels)) > 1
    ((ours, theirs),) = mask_rcnn.of('roi_head._mask_forward')
    assert ours.output['mask_preds'].shape == (len(labels), CLASSES, 28, 28)
    for i, label in enumerate(labels):
        assert torch.equal(pair.student[i], ours.output['mask_preds'][i, label])
        assert torch.equal(pair.teacher[i], theirs.output['mask_preds'][i, label])
    assert pair.student.shape == (len(labels), 28, 28)
    assert pair.student.requires_grad
    assert pair.kind == 'mask'
    assert pair.weight is None and pair.norm is None


def test_class_agnostic_masks_have_one_channel(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(digits(MASK, roi_head__mask_head__class_agnostic=True))
    (pair,) = iteration.read('masks')
    ((ours, theirs),) = iteration.of('roi_head._mask_forward')
    assert ours.output['mask_preds'].shape[1] == 1
    assert torch.equal(pair.student, ours.output['mask_preds'][:, 0])
    assert torch.equal(pair.teacher, theirs.output['mask_preds'][:, 0])


class SharperMasks(StandardRoIHead):
    """Its loss is of twice the logits: no call returned what it is given."""

    def mask_loss(
        self, x: Any, sampling_results: Any, bbox_feats: Any, batch_gt_instances: Any
    ) -> dict[str, Any]:
        rois = bbox2roi([each.pos_priors for each in sampling_results])
        results: dict[str, Any] = self._mask_forward(x, rois)
        losses = self.mask_head.loss_and_target(
            mask_preds=2 * results['mask_preds'],
            sampling_results=sampling_results,
            batch_gt_instances=batch_gt_instances,
            rcnn_train_cfg=self.train_cfg,
        )
        return {**results, 'loss_mask': losses['loss_mask']}


def test_masks_that_are_changed_before_their_loss_are_refused(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model = digits(MASK)
    model.roi_head.__class__ = SharperMasks
    # else the teacher's masks would be the student's, and their loss 0
    with pytest.raises(RuntimeError, match=r'mask_preds \(.*\) depends on weights'):
        iterate(model)


def test_images_without_objects_have_no_masks(
    digits: Callable[..., Any], iterate: Callable[..., Any], mask_rcnn: Any
) -> None:
    model = digits(MASK)
    data = dict(mask_rcnn.data)
    data['data_samples'] = [sample.clone() for sample in data['data_samples']]
    for sample in data['data_samples']:
        instances: InstanceData = sample.gt_instances
        sample.gt_instances = instances[torch.zeros(len(instances), dtype=torch.bool)]
    iteration = iterate(model, data)
    (pair,) = iteration.read('masks')
    assert pair.student.shape == pair.teacher.shape == (0, 28, 28)
    # still tied to the mask head, which has to have a gradient on every rank
    assert pair.student.requires_grad
    pair.student.sum().backward()
    assert iteration.model.roi_head.mask_head.conv_logits.weight.grad is not None
    # the RoIs are all background, and count as such
    (logits,) = iteration.read('logits')
    assert len(logits.student) > 0


def cascade_of(stages: int, mask: bool) -> dict[str, Any]:
    """Return changes that make a small cascade of the small Mask R-CNN."""
    box = dict(
        type='Shared2FCBBoxHead',
        in_channels=32,
        fc_out_channels=32,
        roi_feat_size=7,
        num_classes=CLASSES,
        reg_class_agnostic=True,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox=dict(type='SmoothL1Loss'),
    )
    masks = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=32,
        conv_out_channels=16,
        num_classes=CLASSES,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    )
    sampling = dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
            match_low_quality=False,
        ),
        sampler=dict(
            type='RandomSampler', num=16, pos_fraction=0.5, add_gt_as_proposals=True
        ),
        mask_size=28,
        pos_weight=-1,
    )
    changes: dict[str, Any] = dict(
        type='CascadeRCNN',
        roi_head__type='CascadeRoIHead',
        roi_head__num_stages=stages,
        roi_head__stage_loss_weights=[1.0, 0.5, 0.25][:stages],
        roi_head__bbox_head=[box] * stages,
        train_cfg__rcnn=[sampling] * stages,
    )
    if mask:
        changes['roi_head__mask_head'] = [masks] * stages
    return changes


def test_a_cascade_has_a_pair_a_stage(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(digits(MASK, **cascade_of(3, mask=True)))
    logits, boxes, masks = map(iteration.read, ('logits', 'boxes', 'masks'))
    assert [len(pairs) for pairs in (logits, boxes, masks)] == [3, 3, 3]
    with torch.no_grad():
        feats = iteration.teacher.extract_feat(iteration.data['inputs'])
    calls = iteration.of('roi_head._bbox_forward')
    roi_sets = []
    for stage, (ours, _) in enumerate(calls):
        values = [*ours.args, *ours.kwargs.values()]
        (rois,) = (v for v in values if isinstance(v, Tensor))
        roi_sets.append(rois)
        with torch.no_grad():
            results = iteration.teacher.roi_head._bbox_forward(stage, feats, rois)
        assert torch.equal(logits[stage].teacher, results['cls_score'])
        assert torch.equal(boxes[stage].teacher, results['bbox_pred'])
        assert logits[stage].kind == 'softmax'
        labels = sampled_labels(iteration, stage)
        assert masks[stage].student.shape == (len(labels), 28, 28)
    # each stage refines the boxes of the one before
    assert not torch.equal(roi_sets[0], roi_sets[1])
    assert not torch.equal(logits[0].student, logits[1].student)


def test_a_cascade_without_masks_has_no_such_site(digits: Callable[..., Any]) -> None:
    plan = find_plan(digits(FASTER, **cascade_of(2, mask=False)))
    assert [site.name for site in plan.sites] == [*DENSE, *RPN]
    assert observed(plan) == []


def test_boxes_of_other_than_4_numbers_are_not_compared(
    digits: Callable[..., Any],
) -> None:
    model = digits(FASTER)
    # rotated boxes have 5 numbers, quadrilaterals 8
    model.roi_head.bbox_head.bbox_coder.encode_size = 8
    model.rpn_head.bbox_coder.encode_size = 5
    plan = find_plan(model)
    names = {site.name for site in plan.sites}
    assert names == {'features', 'logits', 'proposals'}
    assert plan.skipped['boxes'] == '8 numbers a box: those of 4 are compared'
