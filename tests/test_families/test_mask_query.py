"""Masks and their classes, read by hand from what the zoo's heads return."""

from __future__ import annotations

from typing import Any, Callable

import torch

MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'


def test_a_mask_classifier_is_read_at_its_last_layer(
    zoo: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model, batch = zoo(MASK2FORMER, num_layers=2)
    iteration = iterate(model, batch)
    ((ours, theirs),) = iteration.of('panoptic_head.forward')
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
    torch.testing.assert_close(masks.weight, sure)
    torch.testing.assert_close(logits.norm, sure.sum())
    assert logits.weight is None and masks.norm is None
    assert (logits.kind, masks.kind) == ('softmax', 'mask')
    # the learned queries were lent, and given back
    shared = ('query_embed', 'query_feat')
    assert iteration.plan.shared == tuple(f'panoptic_head.{name}' for name in shared)
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
    for call in iteration.of('panoptic_head.forward')[0]:
        call.output = call.output[::-1]
    after = [*iteration.read('logits'), *iteration.read('masks')]
    assert len(before) == len(after) > 0
    for one, other in zip(before, after):
        assert torch.equal(one.student, other.student)
        assert torch.equal(one.teacher, other.teacher)
