"""RoI heads: the student's RoIs in both, and the class that each box and mask has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmselfdistill.losses import MaskDistillLoss
from mmselfdistill.replay import Call
from mmselfdistill.sites.two_stage import _classes, _objects, _offsets, _scores

FASTER = 'faster-rcnn_r18_fpn_50e_digits'
MASK = 'mask-rcnn_r18_fpn_50e_digits'
CLASSES = 10


@pytest.fixture(scope='module')
def mask_rcnn(digits: Callable[..., Any], iterate: Callable[..., Any]) -> Any:
    return iterate(digits(MASK))


def teachers_boxes(iteration: Any) -> tuple[Any, Tensor]:
    """Let the teacher's RoI head look at the student's RoIs, outside of a replay."""
    (call, _) = iteration.replayed.of('roi_head._bbox_forward')[0]
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
    assert pair.context['activation'] == 'softmax'
    # the student's own scores of its own RoIs
    feats = mask_rcnn.model.extract_feat(mask_rcnn.data['inputs'])
    ours = mask_rcnn.model.roi_head._bbox_forward(feats, rois)
    assert torch.equal(pair.student, ours['cls_score'])


def test_boxes_are_of_the_teachers_likeliest_object(mask_rcnn: Any) -> None:
    (pair,) = mask_rcnn.read('boxes')
    ours = mask_rcnn.replayed.of('roi_head._bbox_forward')[0][0].output['bbox_pred']
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
    confidence = pair.context['confidence']
    torch.testing.assert_close(confidence.double(), objects, rtol=1e-5, atol=1e-6)
    assert pair.context['box_kind'] == 'deltas'


def test_a_background_roi_still_has_the_box_of_an_object(mask_rcnn: Any) -> None:
    head = mask_rcnn.teacher.roi_head.bbox_head.fc_cls
    with torch.no_grad():
        before = head.bias.clone()
        head.bias[CLASSES] += 1e4
    results, _ = teachers_boxes(mask_rcnn)
    with torch.no_grad():
        head.bias.copy_(before)
    assert set(results['cls_score'].argmax(1).tolist()) == {CLASSES}
    call = mask_rcnn.replayed.of('roi_head._bbox_forward')[0][1]
    kept, call.output['cls_score'] = call.output['cls_score'], results['cls_score']
    (pair,) = mask_rcnn.read('boxes')
    call.output['cls_score'] = kept
    objects = results['cls_score'][:, :CLASSES].tolist()
    for roi, logits in enumerate(objects):
        first = 4 * max(range(CLASSES), key=logits.__getitem__)
        boxes = results['bbox_pred'][roi, first : first + 4]
        assert torch.equal(pair.teacher[roi], boxes)
    assert torch.equal(pair.context['confidence'], torch.zeros(len(kept)))


def test_class_agnostic_boxes_are_taken_whole(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(digits(FASTER, roi_head__bbox_head__reg_class_agnostic=True))
    (pair,) = iteration.read('boxes')
    results, rois = teachers_boxes(iteration)
    assert pair.student.shape == (len(rois), 4)
    assert torch.equal(pair.teacher, results['bbox_pred'])
    assert iteration.family.readers().keys() == {'features', 'logits', 'boxes'}
    assert iteration.family.default_terms().keys() == {'features', 'logits', 'boxes'}


def sampled_labels(iteration: Any, stage: int = 0) -> list[int]:
    """Collect the labels of the positives, image by image, from the mask loss."""
    path = iteration.family.observed()[stage]
    ((call, _),) = iteration.replayed.of(path)
    lists = (v for v in (*call.args, *call.kwargs.values()) if isinstance(v, list))
    results = next(v for v in lists if hasattr(v[0], 'pos_gt_labels'))
    return [int(label) for result in results for label in result.pos_gt_labels]


def test_masks_are_of_the_labelled_class(mask_rcnn: Any) -> None:
    (pair,) = mask_rcnn.read('masks')
    labels = sampled_labels(mask_rcnn)
    assert len(labels) > 3 and len(set(labels)) > 1
    ((ours, theirs),) = mask_rcnn.replayed.of('roi_head._mask_forward')
    assert ours.output['mask_preds'].shape == (len(labels), CLASSES, 28, 28)
    for i, label in enumerate(labels):
        assert torch.equal(pair.student[i], ours.output['mask_preds'][i, label])
        assert torch.equal(pair.teacher[i], theirs.output['mask_preds'][i, label])
    assert pair.student.shape == (len(labels), 28, 28)
    assert pair.student.requires_grad


def test_class_agnostic_masks_have_one_channel(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(digits(MASK, roi_head__mask_head__class_agnostic=True))
    (pair,) = iteration.read('masks')
    ((ours, theirs),) = iteration.replayed.of('roi_head._mask_forward')
    assert ours.output['mask_preds'].shape[1] == 1
    assert torch.equal(pair.student, ours.output['mask_preds'][:, 0])
    assert torch.equal(pair.teacher, theirs.output['mask_preds'][:, 0])


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
    loss = MaskDistillLoss()(pair.student, pair.teacher, **pair.context)
    assert float(loss.detach()) == 0.0
    loss.backward()
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
    calls = iteration.replayed.of('roi_head._bbox_forward')
    roi_sets = []
    for stage, (ours, _) in enumerate(calls):
        values = [*ours.args, *ours.kwargs.values()]
        (rois,) = (v for v in values if isinstance(v, Tensor))
        roi_sets.append(rois)
        with torch.no_grad():
            results = iteration.teacher.roi_head._bbox_forward(stage, feats, rois)
        assert torch.equal(logits[stage].teacher, results['cls_score'])
        assert torch.equal(boxes[stage].teacher, results['bbox_pred'])
        assert logits[stage].context['activation'] == 'softmax'
        labels = sampled_labels(iteration, stage)
        assert masks[stage].student.shape == (len(labels), 28, 28)
    # each stage refines the boxes of the one before
    assert not torch.equal(roi_sets[0], roi_sets[1])
    assert not torch.equal(logits[0].student, logits[1].student)


def test_a_cascade_without_masks_has_no_such_site(digits: Callable[..., Any]) -> None:
    from mmselfdistill.sites import find_family

    changes = cascade_of(2, mask=False)
    family = find_family(digits(FASTER, **changes))
    assert family.readers().keys() == {'features', 'logits', 'boxes'}
    assert family.observed() == []


def test_offsets_and_scores_of_no_roi_are_read() -> None:
    assert _offsets(torch.zeros(0, 8), 1).shape == (0, 2, 4)
    # CrowdDet: two objects in a RoI, each with one box and two scores
    offsets = torch.arange(16.0).view(2, 8)
    assert torch.equal(_offsets(offsets, 2), offsets.view(4, 1, 4))
    head = SimpleNamespace(num_instance=2)
    call = Call('roi_head._bbox_forward', 0, (), {}, [])
    for count in (0, 3):
        call.output = dict(cls_score=torch.zeros(count, 4))
        assert _scores(head, call).shape == (2 * count, 2)


@pytest.mark.parametrize(
    ('loss', 'columns', 'classes', 'objects'),
    [
        # softmax: background is the last
        (dict(use_sigmoid=False), 4, 4, lambda s: 1 - s.softmax(1)[:, -1]),
        # sigmoid with a channel for the background, which is no object
        (dict(use_sigmoid=True), 4, 3, lambda s: s[:, :3].amax(1).sigmoid()),
        # V3Det's: an activation of its own, and a channel for each class
        (
            dict(use_sigmoid=True, custom_activation=True),
            3,
            3,
            lambda s: s.amax(1).sigmoid(),
        ),
        # Seesaw: classes, then object or not
        (
            dict(use_sigmoid=False, custom_activation=True),
            5,
            3,
            lambda s: s[:, 3:].softmax(1)[:, 0],
        ),
    ],
    ids=['softmax', 'sigmoid', 'v3det', 'seesaw'],
)
def test_the_background_is_no_object(
    loss: dict[str, Any],
    columns: int,
    classes: int,
    objects: Callable[[Tensor], Tensor],
) -> None:
    head = SimpleNamespace(num_classes=3, loss_cls=SimpleNamespace(**loss))
    scores = torch.randn(7, columns)
    assert torch.equal(_classes(head, scores), scores[:, :classes])
    torch.testing.assert_close(_objects(head, scores), objects(scores))
