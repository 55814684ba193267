"""Queries of the zoo's own models, read by hand from what their heads return."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from mmselfdistill.families import find_plan
from mmselfdistill.testing import check_identity

LAST = 'decoder layers but the last'
DENOISING, DENSE = 'denoising queries', 'dense queries'
DETR = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
DEFORMABLE = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
DDQ = 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'


@pytest.fixture(scope='module', params=[DETR, DINO, DDQ])
def seen(
    request: pytest.FixtureRequest,
    zoo: Callable[..., Any],
    iterate: Callable[..., Any],
) -> tuple[str, Any]:
    model, batch = zoo(request.param, num_layers=2)
    return request.param, iterate(model, batch)


def matching(iteration: Any, layers: Tensor) -> Tensor:
    """Return the matching queries of the last layer: not those before, nor after."""
    last = layers[-1]
    dense = getattr(iteration.model, 'cache_dict', {}).get('num_dense_queries', 0)
    denoising = last.shape[1] - dense - iteration.model.num_queries
    kept = [
        last[image, denoising + query]
        for image in range(2)
        for query in range(iteration.model.num_queries)
    ]
    return torch.stack(kept)


def test_of_each_image_the_matching_queries_of_the_last_layer_are_read(
    seen: tuple[str, Any],
) -> None:
    key, iteration = seen
    ((ours, theirs),) = iteration.of('bbox_head.forward')
    # DINO and DDQ have others before them, DDQ after them
    more = ours.output[0].shape[2] - iteration.model.num_queries
    assert (more > 0) == (key != DETR)
    (pair,) = iteration.read('logits')
    assert torch.equal(pair.student, matching(iteration, ours.output[0]))
    assert torch.equal(pair.teacher, matching(iteration, theirs.output[0]))
    assert pair.kind == ('softmax' if key == DETR else 'sigmoid')
    # DDQ drops none at these weights
    assert pair.weight is None or bool((key == DDQ) & (pair.weight == 1).all())
    torch.testing.assert_close(pair.norm, sure_of(key, pair.teacher).sum())


def test_queries_that_ddq_drops_do_not_count(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo(DDQ, num_layers=3)
    iteration = iterate(model, batch)
    cache = iteration.teacher.cache_dict
    masks = cache['distinct_query_mask'][-1]
    assert masks.all()
    # as its loss and its predictions find them: in the first row of the first head
    for image, dropped in enumerate(((1, 4), (0, 1, 2))):
        masks[image * cache['num_heads'], 0, list(dropped)] = False
    kept = torch.ones(2, model.num_queries)
    kept[0, [1, 4]] = kept[1, :3] = 0
    kept = kept.flatten()
    (pair,) = iteration.read('logits')
    sure = sure_of(DDQ, pair.teacher) * kept
    assert torch.equal(pair.weight, kept)
    torch.testing.assert_close(pair.norm, sure.sum())
    for pair in iteration.read('boxes'):
        torch.testing.assert_close(pair.weight, sure)


def sure_of(key: str, logits: Tensor) -> Tensor:
    """Return the probability that a query is any object."""
    if key == DETR:
        return 1 - logits.softmax(1)[:, -1]
    return logits.sigmoid().amax(1)


def test_boxes_are_compared_by_centre_and_size_and_by_their_sides(
    seen: tuple[str, Any],
) -> None:
    key, iteration = seen
    ((ours, theirs),) = iteration.of('bbox_head.forward')
    places, sides = iteration.read('boxes')
    assert torch.equal(places.student, matching(iteration, ours.output[1]))
    assert torch.equal(places.teacher, matching(iteration, theirs.output[1]))
    x, y, width, height = places.teacher.unbind(1)
    corners = (width / 2 - x, height / 2 - y, x + width / 2, y + height / 2)
    torch.testing.assert_close(sides.teacher, torch.stack(corners, 1))
    assert (places.kind, sides.kind) == ('cxcywh', 'sides')
    sure = sure_of(key, matching(iteration, theirs.output[0]))
    for pair in (places, sides):
        torch.testing.assert_close(pair.weight, sure)
        assert pair.norm is None


def test_both_sides_decode_the_students_queries(seen: tuple[str, Any]) -> None:
    _, iteration = seen
    ((ours, theirs),) = iteration.of('forward_decoder')
    assert torch.equal(ours.kwargs['query'], theirs.kwargs['query'])
    assert not torch.equal(ours.kwargs['memory'], theirs.kwargs['memory'])


def test_a_decoder_returns_the_points_that_the_student_chose(
    zoo: Callable[..., Any],
) -> None:
    model, batch = zoo(DEFORMABLE, num_layers=2)
    report = check_identity(model, batch)
    assert report.problems == []
    assert [*report.terms] == ['features', 'logits', 'boxes']


def test_queries_that_are_left_out_are_named(seen: tuple[str, Any]) -> None:
    key, iteration = seen
    expected = {DETR: {LAST}, DINO: {LAST, DENOISING}, DDQ: {LAST, DENOISING, DENSE}}
    assert set(iteration.plan.skipped) == expected[key]


def test_a_head_for_each_position_is_none_of_queries(
    digits: Callable[..., Any],
) -> None:
    plan = find_plan(digits('retinanet_r18_fpn_50e_digits'))
    assert plan.name == 'single-stage detector'
