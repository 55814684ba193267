"""How the outputs of dense heads become rows of logits and boxes."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import FoveaHead
from mmdet.models.task_modules.coders import TBLRBBoxCoder
from torch import Tensor

from mmselfdistill.families.predictions import read_head
from mmselfdistill.families.shared import as_logits, as_sides, rows
from mmselfdistill.losses import BoxDistillLoss


def levels(channels: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, s, s, generator=generator) for s in (4, 2)]


def test_logits_of_probabilities_are_the_logits() -> None:
    logits = torch.linspace(-8, 8, 9)
    torch.testing.assert_close(as_logits(logits.sigmoid()), logits, rtol=1e-3, atol=0)
    assert as_logits(torch.tensor([0.0, 1.0])).isfinite().all()


def test_giou_of_corners_is_that_of_the_boxes() -> None:
    # areas 4 and 4, overlap 1, union 7, hull 9; then apart: hull 3 by 1
    student = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    teacher = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 3.0, 1.0]])
    loss = BoxDistillLoss()(as_sides(student), as_sides(teacher), kind='sides')
    expected = [1 - 1 / 7 + 2 / 9, 1 - 0 + 1 / 3]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_centernet_boxes_are_sides_around_a_centre() -> None:
    head = SimpleNamespace(num_classes=3)
    outputs = dict(
        center_heatmap_preds=[level.sigmoid() for level in levels(3)],
        wh_preds=[torch.full((2, 2, 4, 4), 6.0)],
        offset_preds=[torch.tensor([0.25, 0.5]).view(1, 2, 1, 1).expand(2, 2, 4, 4)],
    )
    found = read_head(head, outputs)
    torch.testing.assert_close(found.logits, rows(levels(3), 3), rtol=1e-4, atol=1e-5)
    assert found.box_kind == 'sides'
    # left, top, right, bottom of a box of side 6, whose centre is a little off
    assert found.boxes is not None
    assert found.boxes[7].tolist() == [2.75, 2.5, 3.25, 3.5]
    # only those places are decoded, of whose class no neighbour is likelier
    assert torch.equal(found.foreground(), peaks_of(outputs['center_heatmap_preds']))


def peaks_of(heats: list[Tensor]) -> Tensor:
    found = []
    for heat in heats:
        for image, y, x in np.ndindex(len(heat), *heat.shape[2:]):
            around = heat[image, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            here = heat[image, :, y, x]
            largest = here[here == around.amax((1, 2))]
            found.append(float(largest.max()) if len(largest) else 0.0)
    assert 0 < sum(value > 0 for value in found) < len(found)
    return torch.tensor(found)


def test_corners_are_counted_by_their_peaks() -> None:
    heads = dict(tl_heats=levels(3), br_heats=levels(3, seed=1))
    found = read_head(SimpleNamespace(num_classes=3), heads)
    both = [*heads['tl_heats'], *heads['br_heats']]
    assert torch.equal(found.logits, rows(both, 3))
    assert torch.equal(found.foreground(), peaks_of([each.sigmoid() for each in both]))


def test_yolo_maps_are_box_objectness_and_classes() -> None:
    head = SimpleNamespace(num_attrib=8)
    found = read_head(head, dict(pred_maps=levels(3 * 8)))
    whole = rows(levels(3 * 8), 8)
    assert found.boxes is not None and found.objectness is not None
    joined = torch.cat([found.boxes, found.objectness[:, None], found.logits], 1)
    assert torch.equal(joined[:, 2:], whole[:, 2:])
    # the head trains sigmoids of the places in a cell
    assert torch.equal(found.boxes[:, :2], whole[:, :2].sigmoid())
    expected = whole[:, 4].sigmoid() * whole[:, 5:].sigmoid().amax(1)
    torch.testing.assert_close(found.foreground(), expected)


@pytest.mark.parametrize('size', [16.0, 64.0, 128.0])
def test_fsaf_predicts_the_four_sides_in_parts_of_its_square(size: float) -> None:
    coder = TBLRBBoxCoder(normalizer=4.0)
    head = SimpleNamespace(cls_out_channels=5, bbox_coder=coder, use_sigmoid_cls=True)
    squares = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(2 * (16 + 4), 4)
    boxes = []
    for growth in (1.0, 1.1):
        half = size * growth / 2
        box = squares.new_tensor([[16 - half, 16 - half / 2, 16 + half, 16 + half]])
        encoded = coder.encode(squares, box.expand_as(squares))
        maps = encoded[:32].view(2, 4, 4, 4).permute(0, 3, 1, 2)
        small = encoded[32:].view(2, 2, 2, 4).permute(0, 3, 1, 2)
        outputs = dict(cls_scores=levels(5), bbox_preds=[maps, small])
        found = read_head(head, outputs)
        assert found.boxes is not None and found.box_kind == 'sides'
        boxes.append(found.boxes)
    # as large as the overlap of the boxes says, whatever their size
    loss = BoxDistillLoss()(*boxes, kind='sides')
    torch.testing.assert_close(loss, torch.full_like(loss, 1 - 1 / 1.1**2))


def test_fovea_predicts_logarithms_though_it_has_the_coder_of_distances() -> None:
    coder = type('DistancePointBBoxCoder', (), {})()
    outputs = dict(cls_scores=levels(5), bbox_preds=levels(4, seed=1))
    head = SimpleNamespace(cls_out_channels=5, bbox_coder=coder, use_sigmoid_cls=True)
    # whatever its loss is called
    assert read_head(head, outputs).box_kind == 'sides'
    assert 'base_edge_list' in inspect.signature(FoveaHead).parameters
    head.base_edge_list = (16, 32)
    assert read_head(head, outputs).box_kind == 'offsets'


def test_padding_of_a_text_is_never_a_class() -> None:
    head = SimpleNamespace(use_sigmoid_cls=True)
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]])
    levels = [torch.randn(2, count, 3) for count in (4, 2)]
    found = read_head(head, dict(cls_scores=levels, text_masks=masks))
    first, second = (torch.cat([level[i] for level in levels]) for i in (0, 1))
    kept = found.logits.isfinite()
    assert int(kept.sum()) == 6 * 2 + 6 * 1
    # of each level, all positions of the first image, then of the second
    assert torch.equal(found.logits[:4, :2], first[:4, :2])
    assert torch.equal(found.logits[4:8, 0], second[:4, 0])
    assert (found.foreground()[4:8] == second[:4, 0].sigmoid()).all()


def test_levels_may_differ_in_their_anchors() -> None:
    head = SimpleNamespace(cls_out_channels=3, use_sigmoid_cls=False)
    scores = [torch.randn(2, 4 * 3, 4, 4), torch.randn(2, 6 * 3, 2, 2)]
    boxes = [torch.randn(2, 4 * 4, 4, 4), torch.randn(2, 6 * 4, 2, 2)]
    found = read_head(head, dict(cls_scores=scores, bbox_preds=boxes))
    assert found.boxes is not None and found.kind == 'softmax'
    assert found.boxes.shape == (2 * (4 * 16 + 6 * 4), 4)
    assert len(found.logits) == len(found.boxes)
    # the last anchor of the last position of the last image
    assert torch.equal(found.boxes[-1], boxes[1][1, -4:, -1, -1])
