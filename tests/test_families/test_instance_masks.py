"""Masks of the zoo's single-stage detectors, made again by hand from the outputs."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import surest

RTMDET = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'
CONDINST = 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'
YOLACT = 'mmdet::yolact/yolact_r50_1xb8-55e_coco.py'


@pytest.fixture
def seen(zoo: Callable[..., Any], iterate: Callable[..., Any]) -> Callable[..., Any]:
    def see(key: str) -> Any:
        return iterate(*zoo(key))

    return see


def test_of_a_dense_head_with_kernels_the_masks_are_its_own(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(RTMDET)
    head = iteration.model.bbox_head
    ((_, theirs),) = iteration.of('bbox_head.forward')
    for level, pair in enumerate(iteration.read('masks')):
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
    torch.testing.assert_close(
        pair.student.sigmoid(), torch.stack(masks), rtol=1e-4, atol=2e-6
    )
