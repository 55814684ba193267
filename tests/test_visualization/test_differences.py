"""What differs between two predictions, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from mmselfdistill.visualization.differences import (
    Boxes,
    class_probabilities,
    match,
    missing_overlap,
)


def test_probabilities_of_each_kind_of_scores() -> None:
    logits = torch.randn(3, 4, 5)
    raised = np.exp(logits.double().numpy())
    expected = raised / raised.sum(0)
    assert class_probabilities(logits).numpy() == pytest.approx(expected, abs=1e-6)
    # of a mask classifier: its scores, and not their softmax
    scores = torch.tensor([0.6, 0.2, 0.0])[:, None, None]
    found = class_probabilities(scores).flatten().tolist()
    assert found == pytest.approx([0.75, 0.25, 0.0])
    # a single channel is a sigmoid already
    found = class_probabilities(torch.full((1, 1, 1), 0.3)).flatten().tolist()
    assert found == pytest.approx([0.7, 0.3])


def test_missing_overlap_is_one_less_the_shared_part() -> None:
    first, second = torch.randn(2, 5, 3, 4).softmax(1)
    expected = 1 - np.minimum(first.numpy(), second.numpy()).sum(0)
    assert missing_overlap(first, second).numpy() == pytest.approx(expected, abs=1e-6)
    one, other = torch.eye(2)[:, :, None, None]
    assert missing_overlap(one, other).item() == 1
    assert missing_overlap(first, first).max() == 0


def boxes(*rows: tuple[tuple[float, float, float, float], int]) -> Boxes:
    corners = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    labels = np.array([row[1] for row in rows], int)
    return Boxes(corners, labels, np.full(len(rows), 0.5))


def test_boxes_are_paired_by_place_and_then_by_class() -> None:
    first = boxes(((0, 0, 10, 10), 1), ((30, 0, 40, 10), 2), ((60, 0, 70, 10), 3))
    second = boxes(
        # the first one's place, closest of another class
        ((0, 0, 10, 10), 2),
        ((0, 0, 10, 8), 1),
        # an IoU of 0.6 with another class, one of 0.4, and none
        ((30, 0, 40, 6), 4),
        ((60, 0, 70, 4), 3),
        ((0, 50, 10, 60), 1),
    )
    found = match(first, second)
    assert (found.same, found.other) == ([(0, 1)], [(1, 2)])
    assert (found.first, found.second) == ([2], [0, 3, 4])
    alone = match(first, boxes())
    assert (alone.same, alone.other, alone.second) == ([], [], [])
    assert alone.first == [0, 1, 2]


def test_two_pairs_of_one_class_before_one_of_more_overlap() -> None:
    first = boxes(((0, 0, 10, 10), 1), ((0, 0, 10, 7), 1))
    second = boxes(((0, 0, 10, 9), 1), ((0, 4.5, 10, 10), 1))
    # the largest IoU is that of (0, 0), 0.9; it would leave 1 and 1 with 0.25
    assert sorted(match(first, second).same) == [(0, 1), (1, 0)]


def test_boxes_of_a_prediction() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[1, 2:5, 1:7] = True
    instances = InstanceData(
        bboxes=torch.zeros(3, 4),
        labels=torch.tensor([4, 5, 6]),
        scores=torch.tensor([0.2, 0.3, 0.1]),
        masks=masks,
    )
    # of a model without boxes, those of its masks
    found = Boxes.of(instances, 0.3)
    assert found.corners.tolist() == [[1, 2, 7, 5]]
    assert found.labels.tolist() == [5]
    assert found.area((8, 8)).sum() == 18
    instances.bboxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]])
    assert Boxes.of(instances, 0.15).corners.tolist() == [[0, 0, 1, 1], [1, 1, 2, 2]]
