"""Queries of the zoo's own models, read by hand from what their heads return."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from mmselfdistill.sites import find_family

LAST = 'decoder layers but the last'
DENOISING, DENSE = 'denoising queries', 'dense queries'
DETR = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
DDQ = 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'
MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'


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
    ((ours, theirs),) = iteration.replayed.of('bbox_head.forward')
    # DINO and DDQ have others before them, DDQ after them
    more = ours.output[0].shape[2] - iteration.model.num_queries
    assert (more > 0) == (key != DETR)
    (pair,) = iteration.read('logits')
    assert torch.equal(pair.student, matching(iteration, ours.output[0]))
    assert torch.equal(pair.teacher, matching(iteration, theirs.output[0]))
    activation = 'softmax' if key == DETR else 'sigmoid'
    assert pair.context == dict(activation=activation, average_over='positives')


def test_boxes_are_compared_by_centre_and_size_and_by_their_sides(
    seen: tuple[str, Any],
) -> None:
    key, iteration = seen
    ((ours, theirs),) = iteration.replayed.of('bbox_head.forward')
    places, sides = iteration.read('boxes')
    assert torch.equal(places.student, matching(iteration, ours.output[1]))
    assert torch.equal(places.teacher, matching(iteration, theirs.output[1]))
    x, y, width, height = places.teacher.unbind(1)
    corners = (width / 2 - x, height / 2 - y, x + width / 2, y + height / 2)
    torch.testing.assert_close(sides.teacher, torch.stack(corners, 1))
    assert (places.context['box_kind'], sides.context['box_kind']) == (
        'deltas',
        'distances',
    )
    logits = matching(iteration, theirs.output[0])
    sure = 1 - logits.softmax(1)[:, -1] if key == DETR else logits.sigmoid().amax(1)
    torch.testing.assert_close(places.context['confidence'], sure)


def test_both_sides_decode_the_students_queries(seen: tuple[str, Any]) -> None:
    _, iteration = seen
    ((ours, theirs),) = iteration.replayed.of('forward_decoder')
    assert torch.equal(ours.kwargs['query'], theirs.kwargs['query'])
    assert not torch.equal(ours.kwargs['memory'], theirs.kwargs['memory'])


def test_queries_that_are_left_out_are_named(seen: tuple[str, Any]) -> None:
    key, iteration = seen
    expected = {DETR: {LAST}, DINO: {LAST, DENOISING}, DDQ: {LAST, DENOISING, DENSE}}
    assert set(iteration.family.skipped()) == expected[key]


def test_a_mask_classifier_is_read_at_its_last_layer(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo(MASK2FORMER, num_layers=2)
    iteration = iterate(model, batch)
    ((ours, theirs),) = iteration.replayed.of('panoptic_head.forward')
    (logits,), (masks,) = iteration.read('logits'), iteration.read('masks')
    images, queries, classes = ours.output[0][-1].shape
    assert queries == 50
    assert torch.equal(
        logits.student, ours.output[0][-1].view(images * queries, classes)
    )
    assert torch.equal(
        masks.teacher, torch.cat([theirs.output[1][-1][i] for i in range(images)])
    )
    sure = 1 - logits.teacher.softmax(1)[:, -1]
    torch.testing.assert_close(masks.context['confidence'], sure)
    # the learned queries were lent, and given back
    shared = ['query_embed', 'query_feat']
    assert iteration.family.shared() == [f'panoptic_head.{name}' for name in shared]
    for name in shared:
        own = getattr(iteration.teacher.panoptic_head, name).weight
        assert not torch.equal(own, getattr(model.panoptic_head, name).weight)


def test_masks_that_come_before_the_classes_are_told_by_their_shape(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    """SAN returns them in this order."""
    model, batch = zoo(MASK2FORMER, num_layers=2)
    iteration = iterate(model, batch)
    before = [*iteration.read('logits'), *iteration.read('masks')]
    for call in iteration.replayed.of('panoptic_head.forward')[0]:
        call.output = call.output[::-1]
    after = [*iteration.read('logits'), *iteration.read('masks')]
    for one, other in zip(before, after):
        assert torch.equal(one.student, other.student)
        assert torch.equal(one.teacher, other.teacher)


def test_a_head_for_each_position_is_none_of_queries(
    digits: Callable[..., Any],
) -> None:
    family = find_family(digits('retinanet_r18_fpn_50e_digits'))
    assert family.name == 'single-stage detector'
