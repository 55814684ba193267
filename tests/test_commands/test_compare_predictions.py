"""What runs have predicted, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from run_files import BOXES, detections, truth

from mmselfdistill.commands.predictions import judge


def test_calibration_of_boxes(tmp_path: Path) -> None:
    samples = [
        detections(
            1,
            ((0, 0, 10, 10), 0, 0.95),
            # an IoU of 0.62, of the right class
            ((20, 0, 30, 6.2), 1, 0.65),
            # the same object a second time, and one below the threshold
            ((0, 0, 10, 9), 0, 0.62),
            ((50, 50, 60, 60), 0, 0.1),
        ),
        # of the other class than the object
        detections(2, ((0, 0, 10, 10), 1, 0.95)),
    ]
    judged = judge(samples, truth(tmp_path), min_score=0.3)
    each = judged.calibration
    assert each.count.tolist() == [2, 2]
    assert each.confidence == pytest.approx([0.635, 0.95])
    assert each.precision == pytest.approx([0.5, 0.5])
    assert each.error == pytest.approx(0.5 * 0.135 + 0.5 * 0.45)
    # one of two objects of a, the first of the list: 51 of 101 points of recall.
    # The one of b is the second of the list, and counts at 0.5, 0.55 and 0.6.
    assert judged.classes == pytest.approx({'a': 100 * 51 / 101, 'b': 100 * 0.5 * 0.3})
    with pytest.raises(ValueError, match='knows no image 9'):
        judge([detections(9, ((0, 0, 1, 1), 0, 1.0))], truth(tmp_path), 0.3)
    with pytest.raises(ValueError, match='--annotations: boxes need'):
        judge(samples, None, 0.3)


@pytest.mark.parametrize('text', ['{', '[]', '{"images": [], "annotations": []}'])
def test_annotations_that_are_not_as_cocos(text: str, tmp_path: Path) -> None:
    path = tmp_path / 'a.json'
    path.write_text(text)
    message = r"^--annotations: '.*a\.json' is no file as COCO has: \w+Error"
    with pytest.raises(ValueError, match=message):
        judge([detections(1, (BOXES[1][1], 0, 0.9))], path, 0.3)


def test_boxes_of_a_part_of_the_classes(tmp_path: Path) -> None:
    # the one object of b, which is its only class
    samples = [detections(1, (BOXES[1][1], 0, 0.9)), detections(2)]
    kept = samples[0]['pred_instances']['bboxes'].double()
    samples[0]['pred_instances']['bboxes'] = kept
    judged = judge(samples, truth(tmp_path), 0.3, names=['b'])
    assert kept.tolist() == [[*BOXES[1][1]]]
    assert judged.classes == pytest.approx({'b': 100})
    assert judged.calibration.precision == pytest.approx([1])
    with pytest.raises(
        ValueError, match=r"none of the run's classes \(cat\), but a, b"
    ):
        judge(samples, truth(tmp_path), 0.3, names=['cat'])
    with pytest.raises(
        ValueError, match=r'1 categories .* are classes of the run, but'
    ):
        judge([detections(1, (BOXES[1][1], 1, 0.9))], truth(tmp_path), 0.3, ['b'])


def test_labels_that_are_numbered_by_the_ids_of_their_categories(
    tmp_path: Path,
) -> None:
    # b has the smaller id, and is the second in the file
    samples = [detections(1, (BOXES[1][1], 0, 0.9)), detections(2)]
    judged = judge(samples, truth(tmp_path), 0.3, names=['a', 'b'], by_id=True)
    assert judged.classes == pytest.approx({'b': 100, 'a': 0})
    with pytest.raises(ValueError, match='--annotations: there is no file'):
        judge(samples, tmp_path / 'gone.json', 0.3)


@pytest.mark.parametrize('encoded', [False, True])
def test_a_model_without_boxes_is_judged_by_its_masks(
    encoded: bool, tmp_path: Path
) -> None:
    left, top, right, bottom = map(int, BOXES[1][0])
    mask = np.zeros((64, 64), bool)
    mask[top:bottom, left:right] = True
    sample = detections(1, ((0, 0, 0, 0), 0, 0.9))
    masks = [rle.encode(np.asfortranarray(mask, np.uint8))] if encoded else mask[None]
    sample['pred_instances']['masks'] = masks
    judged = judge([sample], truth(tmp_path), 0.3)
    assert judged.calibration.precision == pytest.approx([1])


def test_calibration_of_pixels() -> None:
    # of 0 and 1: 0.9 for 0, 0.9 for 0, 0.6 for 1, one that is ignored, one of no class
    chance = torch.tensor([[0.9, 0.9, 0.4, 0.5, 0.5], [0.1, 0.1, 0.6, 0.5, 0.5]])
    logits = chance.log()[:, None]
    labels = torch.tensor([[[0, 1, 1, 255, 254]]])
    sample = dict(
        pred_sem_seg=dict(data=logits.argmax(0, keepdim=True)),
        gt_sem_seg=dict(data=labels),
        seg_logits=dict(data=logits),
    )
    judged = judge([sample, sample], None, 0.3, bins=2)
    # all are surer than 0.5: a confidence of 0.8, and two of three right
    assert judged.calibration.count.tolist() == [6]
    assert judged.calibration.error == pytest.approx(0.8 - 2 / 3)
    assert judged.classes == pytest.approx({'class 0': 50.0, 'class 1': 50.0})
    del sample['gt_sem_seg']
    with pytest.raises(ValueError, match='no gt_sem_seg in it; save them by'):
        judge([sample], None, 0.3)


def test_calibration_of_a_foreground_with_its_own_threshold() -> None:
    # MMSegmentation saves sigmoids of a single channel, here with a threshold of 0.3
    chance = torch.tensor([[0.95, 0.45, 0.25, 0.05]])
    sample = dict(
        pred_sem_seg=dict(data=(chance > 0.3).long()[None]),
        gt_sem_seg=dict(data=torch.tensor([[[1, 0, 0, 1]]])),
        seg_logits=dict(data=chance[None]),
    )
    judged = judge([sample], None, 0.3, names=('ground', 'road'))
    each = judged.calibration
    # of what was predicted: 0.45 (wrong), 0.75 (right), 0.95 twice (right, wrong)
    assert each.confidence == pytest.approx([0.45, 0.75, 0.95])
    assert each.precision.tolist() == [0, 1, 0.5]
    assert each.error == pytest.approx((0.45 + 0.25 + 2 * 0.45) / 4)
    assert judged.classes == pytest.approx({'ground': 100 / 3, 'road': 100 / 3})


def test_calibration_is_that_of_a_loop_over_pixels() -> None:
    rng = np.random.RandomState(0)
    logits = 3 * rng.randn(4, 20, 25)
    truth = rng.randint(0, 4, (20, 25))
    truth[:2] = 255
    chances = np.exp(logits) / np.exp(logits).sum(0)
    sample = dict(
        pred_sem_seg=dict(data=torch.tensor(logits.argmax(0)[None])),
        gt_sem_seg=dict(data=torch.tensor(truth[None])),
        seg_logits=dict(data=torch.tensor(logits)),
    )
    bins: dict[int, list[tuple[float, bool]]] = {}
    for y, x in np.ndindex(18, 25):
        pixel = chances[:, y + 2, x]
        right = bool(pixel.argmax() == truth[y + 2, x])
        bins.setdefault(int(10 * pixel.max()), []).append((pixel.max(), right))
    judged = judge([sample], None, 0.3).calibration
    rows = [np.array(bins[key], float) for key in sorted(bins)]
    assert judged.count.tolist() == [len(row) for row in rows]
    assert judged.confidence == pytest.approx([row[:, 0].mean() for row in rows])
    assert judged.precision == pytest.approx([row[:, 1].mean() for row in rows])
    gaps = [abs(row[:, 0].sum() - row[:, 1].sum()) for row in rows]
    assert judged.error == pytest.approx(sum(gaps) / 450)
