"""Masks of the zoo's single-stage detectors, made again by hand from the outputs."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

SOLO = 'mmdet::solo/solo_r50_fpn_1x_coco.py'
DECOUPLED = 'mmdet::solo/decoupled-solo_r50_fpn_1x_coco.py'
SOLOV2 = 'mmdet::solov2/solov2-light_r18_fpn_ms-3x_coco.py'
RTMDET = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'
CONDINST = 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'
YOLACT = 'mmdet::yolact/yolact_r50_1xb8-55e_coco.py'
CELLS = 8


@pytest.fixture
def seen(zoo: Callable[..., Any], iterate: Callable[..., Any]) -> Callable[..., Any]:
    def see(key: str) -> Any:
        return iterate(*zoo(key))

    return see


def surest(logits: Tensor) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Return the surest cells (image, row, column) of each image, and how sure."""
    scores, cells = [], []
    for image, maps in enumerate(logits.sigmoid().amax(1)):
        order = sorted(
            (
                (float(maps[y, x]), y, x)
                for y in range(len(maps))
                for x in range(len(maps[0]))
            ),
            reverse=True,
        )
        scores += [score for score, _, _ in order[:CELLS]]
        cells += [(image, y, x) for _, y, x in order[:CELLS]]
    return scores, cells


def mask_of_cell(key: str, outputs: Any, level: int, cell: tuple[int, int, int]) -> Any:
    """Return the probability of each pixel of a cell's mask."""
    image, row, column = cell
    if key == SOLO:
        masks = outputs[0][level][image]
        return masks[row * int(len(masks) ** 0.5) + column].sigmoid()
    if key == DECOUPLED:
        x, y = outputs[0][level][image], outputs[1][level][image]
        return x[column].sigmoid() * y[row].sigmoid()
    kernel = outputs[0][level][image, :, row, column]
    return torch.einsum('c,chw->hw', kernel, outputs[2][image]).sigmoid()


@pytest.mark.parametrize('key', [SOLO, DECOUPLED, SOLOV2])
def test_of_a_grid_the_masks_of_the_teachers_surest_cells_are_compared(
    key: str, seen: Callable[..., Any]
) -> None:
    iteration = seen(key)
    ((ours, theirs),) = iteration.replayed.of('mask_head.forward')
    classes = theirs.output[2 if key == DECOUPLED else 1]
    pairs = iteration.read('masks')
    assert len(pairs) == len(classes) == 5
    for level, pair in enumerate(pairs):
        scores, cells = surest(classes[level])
        assert pair.context['confidence'].tolist() == pytest.approx(scores, rel=1e-5)
        # a grid that is finer than its features has cells that are equally sure
        alone = [i for i, score in enumerate(scores) if scores.count(score) == 1]
        assert len(alone) > CELLS // 2
        for side, call in ((pair.student, ours), (pair.teacher, theirs)):
            expected = [mask_of_cell(key, call.output, level, cells[i]) for i in alone]
            torch.testing.assert_close(
                side[alone].sigmoid(), torch.stack(expected), rtol=1e-4, atol=2e-6
            )


def test_of_a_dense_head_with_kernels_the_masks_are_its_own(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(RTMDET)
    head = iteration.model.bbox_head
    ((_, theirs),) = iteration.replayed.of('bbox_head.forward')
    for level, pair in enumerate(iteration.read('masks')):
        stride = head.prior_generator.strides[level][0]
        logits, kernels, features = (
            theirs.output[0][level],
            theirs.output[2][level],
            theirs.output[3],
        )
        scores, cells = surest(logits)
        assert pair.context['confidence'].tolist() == pytest.approx(scores, rel=1e-5)
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
    ((ours, theirs),) = iteration.replayed.of('mask_head.forward')
    (pair,) = iteration.read('masks')
    assert len(pair.student) == sum(len(masks) for masks in ours.output[0]) > 0
    assert torch.equal(pair.student[0], ours.output[0][0][0].squeeze(0))
    assert torch.equal(pair.teacher[-1], theirs.output[0][-1][-1].squeeze(0))
    # they are of the student's positives, with the teacher's kernels
    ((before, after),) = iteration.replayed.of('bbox_head.get_positive_infos')
    for mine, other in zip(before.output, after.output):
        assert torch.equal(mine.pos_assigned_gt_inds, other.pos_assigned_gt_inds)
        assert not torch.equal(mine.param_preds, other.param_preds)


def test_probabilities_with_the_instances_last_become_logits(
    seen: Callable[..., Any],
) -> None:
    iteration = seen(YOLACT)
    ((ours, _),) = iteration.replayed.of('mask_head.forward')
    (pair,) = iteration.read('masks')
    masks = [image[..., i] for image in ours.output[0] for i in range(image.shape[-1])]
    assert len(masks) == len(pair.student) > 0
    torch.testing.assert_close(
        pair.student.sigmoid(), torch.stack(masks), rtol=1e-4, atol=2e-6
    )
