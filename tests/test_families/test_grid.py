"""Grids of masks: a class and a mask for each cell, made again by hand."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import CELLS, surest

SOLO = 'mmdet::solo/solo_r50_fpn_1x_coco.py'
DECOUPLED = 'mmdet::solo/decoupled-solo_r50_fpn_1x_coco.py'
SOLOV2 = 'mmdet::solov2/solov2-light_r18_fpn_ms-3x_coco.py'


@pytest.fixture(scope='module', params=[SOLO, DECOUPLED, SOLOV2])
def seen(
    request: pytest.FixtureRequest,
    zoo: Callable[..., Any],
    iterate: Callable[..., Any],
) -> tuple[str, Any]:
    return request.param, iterate(*zoo(request.param))


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


def test_of_a_grid_the_masks_of_the_teachers_surest_cells_are_compared(
    seen: tuple[str, Any],
) -> None:
    key, iteration = seen
    ((ours, theirs),) = iteration.of('mask_head.forward')
    classes = theirs.output[2 if key == DECOUPLED else 1]
    pairs = iteration.read('masks')
    assert len(pairs) == len(classes) == 5
    for level, pair in enumerate(pairs):
        scores, cells = surest(classes[level])
        assert pair.weight.tolist() == pytest.approx(scores, rel=1e-5)
        assert pair.kind == 'mask' and pair.norm is None
        # a grid that is finer than its features has cells that are equally sure
        alone = [i for i, score in enumerate(scores) if scores.count(score) == 1]
        assert len(alone) > CELLS // 2
        for side, call in ((pair.student, ours), (pair.teacher, theirs)):
            expected = [mask_of_cell(key, call.output, level, cells[i]) for i in alone]
            torch.testing.assert_close(
                side[alone].sigmoid(), torch.stack(expected), rtol=1e-4, atol=2e-6
            )


def test_logits_are_a_row_a_cell(seen: tuple[str, Any]) -> None:
    key, iteration = seen
    ((ours, theirs),) = iteration.of('mask_head.forward')
    (pair,) = iteration.read('logits')
    place = 2 if key == DECOUPLED else 1
    for side, call in ((pair.student, ours), (pair.teacher, theirs)):
        expected = [
            image[:, y, x]
            for level in call.output[place]
            for image in level
            for y in range(image.shape[1])
            for x in range(image.shape[2])
        ]
        assert torch.equal(side, torch.stack(expected))
    assert pair.kind == 'sigmoid'
    assert pair.weight is None
    sure = pair.teacher.amax(1).sigmoid()
    torch.testing.assert_close(pair.norm, sure.sum())
