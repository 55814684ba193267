"""What RoI heads return, in all its forms: scores and boxes without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from mmselfdistill.families.plan import Call, Side
from mmselfdistill.families.rois import (
    _boxes,
    _logits,
    _of_boxes,
    _of_logits,
    _scores,
    boxes_and_classes,
)


def call_of(scores: Tensor, boxes: Tensor) -> Call:
    output = dict(cls_score=scores, bbox_pred=boxes)
    return Call('roi_head._bbox_forward', 0, (), {}, output=output)


def read_boxes(head: Any, call: Call) -> Tensor:
    (reading,), (rows,) = _boxes(head, call), _of_boxes(head, call)
    assert reading.kind == 'offsets'
    return reading.at(rows.index)


def test_offsets_and_scores_of_no_roi_are_read() -> None:
    softmax = SimpleNamespace(use_sigmoid=False)
    head = SimpleNamespace(num_classes=2, loss_cls=softmax)
    none = call_of(torch.zeros(0, 3), torch.zeros(0, 8))
    assert read_boxes(head, none).shape == (0, 4)
    # CrowdDet: two objects in a RoI, each with one box and two scores
    head = SimpleNamespace(num_classes=1, num_instance=2, loss_cls=softmax)
    offsets = torch.arange(16.0).view(2, 8)
    call = call_of(torch.zeros(2, 4), offsets)
    assert torch.equal(read_boxes(head, call), offsets.view(4, 4))
    for count in (0, 3):
        call = call_of(torch.zeros(count, 4), torch.zeros(count, 8))
        assert _scores(head, call).shape == (2 * count, 2)
        assert read_boxes(head, call).shape == (2 * count, 4)


def test_boxes_that_come_decoded_are_taken_from_the_origin() -> None:
    """Sparse R-CNN: its stages return the corners of boxes."""
    head = SimpleNamespace(num_classes=3, loss_cls=SimpleNamespace(use_sigmoid=True))
    corners = torch.tensor([[1.0, 2.0, 5.0, 7.0], [0.0, -1.0, 3.0, 4.0]])
    call = call_of(torch.randn(2, 3), torch.zeros(2, 4))
    call.output['decoded_bboxes'] = corners
    (reading,), (rows,) = _boxes(head, call), _of_boxes(head, call)
    expected = torch.tensor([[-1.0, -2.0, 5.0, 7.0], [0.0, 1.0, 3.0, 4.0]])
    assert reading.kind == 'sides'
    assert torch.equal(reading.at(rows.index), expected)
    sure = call.output['cls_score'].amax(1).sigmoid()
    torch.testing.assert_close(rows.weight, sure)
    (logits,), (counted,) = _logits(head, call), _of_logits(head, call)
    assert logits.kind == 'sigmoid' and counted.weight is None
    torch.testing.assert_close(counted.norm, sure.sum())


def test_seesaw_has_objects_and_classes_apart() -> None:
    loss = SimpleNamespace(use_sigmoid=False, custom_activation=True)
    head = SimpleNamespace(num_classes=3, loss_cls=loss)
    call = call_of(torch.randn(7, 5), torch.zeros(7, 12))
    objects, classes = _logits(head, call)
    scores = call.output['cls_score']
    assert torch.equal(objects.at(None), scores[:, 3:])
    assert torch.equal(classes.at(None), scores[:, :3])
    assert objects.kind == classes.kind == 'softmax'
    of_objects, of_classes = _of_logits(head, call)
    assert of_objects.weight is None and of_objects.norm is None
    torch.testing.assert_close(of_classes.weight, scores[:, 3:].softmax(1)[:, 0])


def test_without_labels_seesaws_rois_are_divided_by_objects() -> None:
    loss = SimpleNamespace(use_sigmoid=False, custom_activation=True)
    head = SimpleNamespace(num_classes=3, loss_cls=loss)
    call = call_of(torch.randn(7, 5), torch.zeros(7, 12))
    site = boxes_and_classes(SimpleNamespace(bbox_head=head))[0].on(False)
    assert site.weigh is not None
    of_objects, of_classes = site.weigh(Side(nn.Module(), [call], None))
    sure = call.output['cls_score'][:, 3:].softmax(1)[:, 0]
    # most are background
    assert of_objects.weight is None
    torch.testing.assert_close(of_objects.norm, sure.sum())
    torch.testing.assert_close(of_classes.weight, sure)
    assert of_classes.norm is None


def test_what_a_head_refines_counts_as_refined() -> None:
    """CrowdDet, by whose refined scores and boxes inference goes."""
    softmax = SimpleNamespace(use_sigmoid=False)
    head = SimpleNamespace(num_classes=1, num_instance=2, loss_cls=softmax)
    call = call_of(torch.randn(5, 4), torch.randn(5, 8))
    refined = dict(cls_score_ref=torch.randn(5, 4), bbox_pred_ref=torch.randn(5, 8))
    call.output.update(refined)
    (logits,) = _logits(head, call)
    assert torch.equal(logits.at(None), refined['cls_score_ref'].view(10, 2))
    boxes = read_boxes(head, call)
    assert torch.equal(boxes, refined['bbox_pred_ref'].view(10, 4))


@pytest.mark.parametrize(
    ('loss', 'columns', 'classes', 'objects'),
    [
        # softmax: background is the last
        (dict(use_sigmoid=False), 4, 4, lambda s: 1 - s.softmax(1)[:, -1]),
        # learnt by sigmoids, and a softmax with a background in inference all the same
        (dict(use_sigmoid=True), 4, 4, lambda s: 1 - s.softmax(1)[:, -1]),
        # a loss that does not say what it takes
        (dict(), 4, 4, lambda s: 1 - s.softmax(1)[:, -1]),
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
    ids=['softmax', 'sigmoid', 'unknown', 'v3det', 'seesaw'],
)
def test_the_background_is_no_object(
    loss: dict[str, Any],
    columns: int,
    classes: int,
    objects: Callable[[Tensor], Tensor],
) -> None:
    head = SimpleNamespace(num_classes=3, loss_cls=SimpleNamespace(**loss))
    scores = torch.randn(7, columns)
    call = call_of(scores, torch.zeros(7, 12))
    logits = _logits(head, call)[-1]
    assert torch.equal(logits.at(None), scores[:, :classes])
    assert logits.kind == ('sigmoid' if columns == 3 else 'softmax')
    (rows,) = _of_boxes(head, call)
    torch.testing.assert_close(rows.weight, objects(scores))


def test_crowddets_background_is_its_first_class() -> None:
    softmax = SimpleNamespace(use_sigmoid=False)
    head = SimpleNamespace(num_classes=1, num_instance=2, loss_cls=softmax)
    scores = torch.randn(5, 4)
    (rows,) = _of_boxes(head, call_of(scores, torch.zeros(5, 8)))
    # each RoI has two persons, and each background and person
    persons = scores.view(10, 2).softmax(1)[:, 1]
    torch.testing.assert_close(rows.weight, persons)
