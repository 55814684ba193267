"""Masks of the zoo's single-stage detectors, made again by hand from the outputs."""

from __future__ import annotations

from itertools import product
from typing import Any, Callable, Sequence

import pytest
import torch
from helpers import CELLS, surest
from mmengine.structures import InstanceData
from torch import Tensor

from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.losses import MaskDistillLoss
from mmselfdistill.losses.common import bernoulli_kl, reduced

RTMDET = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'
CONDINST = 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'
HTC = 'mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py'
YOLACT = 'mmdet::yolact/yolact_r50_1xb8-55e_coco.py'


@pytest.fixture
def seen(zoo: Callable[..., Any], iterate: Callable[..., Any]) -> Callable[..., Any]:
    def see(key: str, labels: bool = True) -> Any:
        return iterate(*zoo(key), labels=labels)

    return see


def test_of_a_dense_head_with_kernels_the_masks_are_its_own(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(RTMDET)
    head = iteration.model.bbox_head
    ((_, theirs),) = iteration.of('bbox_head.forward')
    pairs = iteration.read('masks')
    assert len(pairs) == len(theirs.output[0])
    for level, pair in enumerate(pairs):
        stride = head.prior_generator.strides[level][0]
        logits, kernels, features = (
            theirs.output[0][level],
            theirs.output[2][level],
            theirs.output[3],
        )
        scores, cells = surest(logits)
        assert pair.weight.tolist() == pytest.approx(scores, rel=1e-5)
        assert pair.kind == 'mask' and pair.norm is None
        expected = [
            head._mask_predict_by_feat_single(
                features[image],
                kernels[image, :, y, x][None],
                # the corner of the cell, and its stride in both directions
                torch.tensor([[x * stride, y * stride, stride, stride]]).float(),
            )[0]
            for image, y, x in cells
        ]
        torch.testing.assert_close(
            pair.teacher, torch.stack(expected), rtol=1e-4, atol=1e-5
        )


def test_of_positives_the_masks_are_those_of_the_mask_head(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(CONDINST)
    ((ours, theirs),) = iteration.of('mask_head.forward')
    (pair,) = iteration.read('masks')
    assert len(pair.student) == sum(len(masks) for masks in ours.output[0]) > 0
    assert torch.equal(pair.student[0], ours.output[0][0][0].squeeze(0))
    assert torch.equal(pair.teacher[-1], theirs.output[0][-1][-1].squeeze(0))
    assert pair.kind == 'mask'
    assert pair.weight is None and pair.norm is None
    # they are of the student's positives, with the teacher's kernels
    ((before, after),) = iteration.of('bbox_head.get_positive_infos')
    for mine, other in zip(before.output, after.output):
        assert torch.equal(mine.pos_assigned_gt_inds, other.pos_assigned_gt_inds)
        assert not torch.equal(mine.param_preds, other.param_preds)


def test_probabilities_with_the_instances_last_become_logits(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(YOLACT)
    ((ours, _),) = iteration.of('mask_head.forward')
    (pair,) = iteration.read('masks')
    masks = [image[..., i] for image in ours.output[0] for i in range(image.shape[-1])]
    assert len(masks) == len(pair.student) > 0
    assert pair.kind == 'mask'
    # outside of the boxes of the positives it neither trains nor predicts them
    inside, infos = pair.student != 0, ours.args[1]
    assert 0 < float(inside.float().mean()) < 1
    kept = torch.stack(masks)[inside]
    torch.testing.assert_close(
        pair.student[inside].sigmoid(), kept, rtol=1e-4, atol=2e-6
    )
    boxes = torch.cat([info.bboxes for info in infos])
    height, width = pair.student.shape[1:]
    for (left, top, right, bottom), mask in zip(boxes.tolist(), inside):
        # images of 64 pixels, with one more on each side
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        for found, low, high, size in (
            (rows, top, bottom, height),
            (columns, left, right, width),
        ):
            assert abs(int(found.min()) - max(low * size / 64 - 1, 0)) <= 1
            assert abs(int(found.max()) + 1 - min(high * size / 64 + 1, size)) <= 1
    # the mean over positives of the mean inside of each box
    values = MaskDistillLoss()(pair.student, pair.teacher, kind='mask')
    each = bernoulli_kl(pair.student, pair.teacher, 1.0)
    expected = torch.stack([e[i].mean() for e, i in zip(each, inside)]).mean()
    torch.testing.assert_close(reduced(values, pair.weight, pair.norm), expected)


def test_without_labels_the_teacher_chooses_whose_parameters_make_a_mask(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(CONDINST, labels=False)
    teacher = iteration.teacher
    ((_, boxes),) = iteration.of('bbox_head.forward')
    ((_, features),) = iteration.of('extract_feat')
    pairs = iteration.read('masks')
    assert len(pairs) == 5
    for level, pair in enumerate(pairs):
        stride = teacher.bbox_head.strides[level]
        parameters = boxes.output[3][level]
        scores, cells = surest(boxes.output[0][level])
        assert pair.weight.tolist() == pytest.approx(scores, rel=1e-5)
        assert pair.kind == 'mask' and pair.norm is None
        infos = [
            InstanceData(
                param_preds=torch.stack(
                    [parameters[i, :, y, x] for i, y, x in cells if i == image]
                ),
                # the middle of the cell
                points=torch.tensor(
                    [
                        [(x + 0.5) * stride, (y + 0.5) * stride]
                        for i, y, x in cells
                        if i == image
                    ]
                ),
                strides=torch.tensor([float(stride) for i, *_ in cells if i == image]),
            )
            for image in range(2)
        ]
        with torch.no_grad():
            (masks,) = teacher.mask_head(features.output, infos)
        torch.testing.assert_close(pair.teacher, torch.cat(masks))
        assert pair.student.requires_grad and pair.student.shape == pair.teacher.shape


def test_without_labels_the_teacher_chooses_whose_coefficients_make_a_mask(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo(YOLACT)
    with torch.no_grad():
        # so that no two anchors are sure to the last bit
        model.bbox_head.conv_cls.weight.mul_(0.01)
    iteration = iterate(model, batch, labels=False)
    ((_, boxes),) = iteration.of('bbox_head.forward')
    ((_, features),) = iteration.of('extract_feat')
    head = iteration.teacher.bbox_head
    pairs = iteration.read('masks')
    assert len(pairs) == len(boxes.output[0])
    for level, pair in enumerate(pairs):
        infos, scores = [], []
        for image in zip(*(output[level] for output in boxes.output)):
            logits, deltas, coefficients = image
            height, width = logits.shape[1:]
            anchors = head.prior_generator.single_level_grid_priors(
                (height, width), level, device='cpu'
            ).view(height, width, 3, 4)
            found = []
            for y, x, a in product(range(height), range(width), range(3)):
                background = logits[81 * a : 81 * (a + 1), y, x].softmax(0)[-1]
                box = decoded(anchors[y, x, a], deltas[:, y, x].chunk(3)[a])
                own = coefficients[:, y, x].chunk(3)[a]
                found.append((1 - float(background), own, box))
            found = sorted(found, key=lambda each: -each[0])[:CELLS]
            scores += [sure for sure, *_ in found]
            coeffs, kept = (torch.stack([each[i] for each in found]) for i in (1, 2))
            infos.append(InstanceData(coeffs=coeffs, bboxes=kept))
        with torch.no_grad():
            masks, _ = iteration.teacher.mask_head(features.output, infos)
        whole = torch.cat([each.permute(2, 0, 1) for each in masks])
        inside = torch.stack(
            [
                within(box, whole.shape[1:])
                for info in infos
                for box in (info.bboxes / 64).tolist()
            ]
        )
        assert not inside.all() and inside.flatten(1).any(1).all()
        assert torch.equal(pair.teacher != 0, inside)
        assert torch.equal(pair.student != 0, inside)
        torch.testing.assert_close(pair.teacher.sigmoid()[inside], whole[inside])
        # the mean over the cells, by how sure the teacher is, of the mean in each box
        values = MaskDistillLoss()(pair.student, pair.teacher, kind='mask')
        each = bernoulli_kl(pair.student, pair.teacher, 1.0)
        each = torch.stack([e[i].mean() for e, i in zip(each, inside)])
        sure = torch.tensor(scores)
        torch.testing.assert_close(
            reduced(values, pair.weight, pair.norm), (each * sure).sum() / sure.sum()
        )


def decoded(anchor: Tensor, deltas: Tensor) -> Tensor:
    """Return the box of an anchor in an image of 64 pixels, as SSD decodes it."""
    low, high = anchor[:2], anchor[2:]
    move, stretch = deltas[:2] * 0.1, deltas[2:] * 0.2
    middle = (low + high) / 2 + move * (high - low)
    size = (high - low) * stretch.exp()
    return torch.cat([middle - size / 2, middle + size / 2]).clamp(0, 64)


def within(box: list[float], size: Sequence[int]) -> Tensor:
    """Return which pixels of a mask lie in a box (0 to 1), or one pixel next to it."""
    left, top, right, bottom = box
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    below = (rows >= top * size[0] - 1) & (rows < bottom * size[0] + 1)
    return below & (columns >= left * size[1] - 1) & (columns < right * size[1] + 1)


def test_without_labels_the_masks_of_a_cascade_come_in_a_list(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    iteration = iterate(*zoo(HTC, max_per_img=4, num=4), labels=False)
    (pair,) = iteration.read('masks')
    boxes = [theirs for _, theirs in iteration.of('roi_head._bbox_forward')]
    ((_, masks),) = iteration.of('roi_head._mask_forward')
    (logits,) = masks.output['mask_preds']
    probabilities = boxes[-1].output['cls_score'].softmax(1)
    torch.testing.assert_close(pair.weight, 1 - probabilities[:, 80])
    best = probabilities[:, :80].argmax(1)
    assert len(pair.teacher) == len(logits) == len(best) > 0
    for i, label in enumerate(best.tolist()):
        assert torch.equal(pair.teacher[i], logits[i, label])


def test_without_labels_each_image_has_masks_of_its_best_proposals(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model = digits(
        'mask-rcnn_r18_fpn_50e_digits',
        test_cfg__rpn__max_per_img=120,
        test_cfg__rpn__nms__iou_threshold=0.9,
    )
    iteration = iterate(model, labels=False)
    ((boxes, theirs),) = iteration.of('roi_head._bbox_forward')
    ((masks, others),) = iteration.of('roi_head._mask_forward')
    assert len(boxes.args[1]) == 240
    with torch.no_grad():
        maps = model.extract_feat(iteration.data['inputs'])
        samples = without_labels(iteration.data['data_samples'])
        proposals = model.rpn_head.predict(maps, samples, rescale=False)
    for image, (rois, count) in product((0, 1), ((boxes, 120), (masks, 50))):
        own = rois.args[1][rois.args[1][:, 0] == image]
        assert torch.equal(own[:, 1:], proposals[image].bboxes[:count])
    # row by row, boxes and masks are of the same RoIs
    assert torch.equal(masks.args[1], boxes.args[1][:100])
    (pair,) = iteration.read('masks')
    probabilities = theirs.output['cls_score'][:100].softmax(1)
    torch.testing.assert_close(pair.weight, 1 - probabilities[:, -1])
    best = probabilities[:, :-1].argmax(1)
    assert torch.equal(pair.teacher, others.output['mask_preds'][range(100), best])


@pytest.mark.parametrize('patched', [False, True])
def test_without_labels_a_semantic_branch_still_runs(
    patched: bool, zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py')
    if patched:
        vars(model.roi_head)['forward'] = model.roi_head.forward
    before = dict(vars(model.roi_head))
    iteration = iterate(model, batch, labels=False)
    ((ours, _),) = iteration.of('semantic_head.forward')
    (pair,) = iteration.read('semantic')
    assert torch.equal(pair.student, ours.output['seg_preds'])
    ((masks, _),) = iteration.of('roi_head._mask_forward')
    assert masks.args[1][:, 0].unique().tolist() == [0, 1]
    assert vars(model.roi_head).get('forward') is before.get('forward')
