"""What runs have logged and predicted, against figures worked out by hand."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from mmengine.config import Config
from pycocotools import mask as rle
from rich.console import Console

from mmselfdistill.commands.compare import compare
from mmselfdistill.commands.pictures import (
    INKS,
    draw_calibration,
    draw_classes,
    draw_comparison,
    draw_counts,
    draw_curves,
    draw_losses,
)
from mmselfdistill.commands.predictions import Calibration, judge, read_predictions
from mmselfdistill.commands.runs import Curve, Run, class_names, percent, task_loss

MAP = 'coco/bbox_mAP'


def log(folder: Path, *entries: dict[str, Any]) -> None:
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, entries)))


def epochs(first: int, *times: float) -> list[dict[str, Any]]:
    """Return entries of ten iterations, an epoch each."""
    return [
        dict(
            loss=2.0, loss_sd_logits=0.5, epoch=first + i, step=10 * (first + i), time=t
        )
        for i, t in enumerate(times)
    ]


def test_a_resumed_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    scores = [{MAP: 0.1 * at, 'step': at} for at in (1, 2, 3)]
    log(tmp_path / '1', *epochs(1, 1.0, 1.0, 9.0), *scores)
    with (tmp_path / '1/vis_data/scalars.json').open('a') as file:
        file.write('\n{"loss": 1.')
    # begun again after epoch 2: the third was lost
    log(tmp_path / '2', *epochs(3, 2.0, 4.0), {MAP: 0.05, 'step': 4})
    run = Run.read(tmp_path)
    curve = run.curve(MAP)
    assert curve.scores == pytest.approx({1: 10, 2: 20, 4: 5})
    assert curve.best() == (2, pytest.approx(20))
    assert [entry['time'] for entry in run.train] == [1, 1, 2, 4]
    # 10 x (1 + 1 + 2 + 4) seconds
    assert curve.hours_at([2, 4]) == pytest.approx([20 / 3600, 80 / 3600])
    assert curve.seconds(0, 4) == 1.5


def test_of_two_runs_in_one_folder_the_last_counts(tmp_path: Path) -> None:
    def steps(first: int) -> list[dict[str, Any]]:
        return [dict(loss=1.0, step=first + at, time=0.5) for at in (0, 50, 100)]

    log(tmp_path / '1', *steps(50), *(dict(mIoU=50.0 - k, step=k) for k in (10, 150)))
    log(tmp_path / '2', *steps(50), dict(mIoU=30.0, step=100))
    assert Run.read(tmp_path).curve('mIoU').scores == {100: 30.0}
    # a resumed one keeps what came before
    log(tmp_path / '3', *steps(150), dict(mIoU=35.0, step=200))
    assert Run.read(tmp_path).curve('mIoU').scores == {100: 30.0, 200: 35.0}


def test_metrics_by_iteration(tmp_path: Path) -> None:
    steps = [dict(loss=1.0, iter=at, step=at, time=0.5) for at in (50, 100)]
    log(tmp_path / '1', *steps, dict(mIoU=30.0, step=100))
    curve = Run.read(tmp_path).curve('mIoU')
    assert (curve.unit, curve.scores) == ('iterations', {100: 30.0})
    assert curve.hours_at([100]) == pytest.approx([50 / 3600])


@pytest.mark.parametrize(
    ('metric', 'factor'),
    [
        ('coco/bbox_mAP_50', 100),
        ('mine/segm_mAP', 100),
        ('pascal_voc/mAP', 100),
        ('openimages/AP50', 100),
        ('lvis/bbox_APr', 100),
        ('lvis/AR@300', 100),
        ('teacher/coco/cat_precision', 100),
        ('crowd_human/mMR', 100),
        ('coco_panoptic/PQ', 1),
        ('mIoU', 1),
        ('aAcc', 1),
        ('mPrecision', 1),
        ('accuracy/top1', 1),
        ('multi-label/mAP', 1),
    ],
)
def test_every_score_is_in_percent(metric: str, factor: int) -> None:
    assert percent(metric, 0.25) == 0.25 * factor


def test_a_prefix_of_ones_own(tmp_path: Path) -> None:
    for name, score in (('plain', 0.25), ('ours', 0.5)):
        entry = {'my/bbox_mAP': score, 'my/a/b_precision': score, 'step': 1}
        log(tmp_path / name / '1', *epochs(1, 1.0), entry)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    runs, classes = cells(compare(folders, tmp_path / 'a.png'))
    assert [row[1] for row in runs] == ['25.0', '50.0']
    assert classes == [['a/b', '25.0', '50.0', '+25.0']]


def test_what_a_run_imported_is_not_imported_again(tmp_path: Path) -> None:
    log(tmp_path / 'plain/1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    config = tmp_path / 'plain/1/vis_data/config.py'
    config.write_text("custom_imports = dict(imports=['not_here'])\n")
    (table,) = compare([tmp_path / 'plain'], tmp_path / 'a.png')
    assert table.row_count == 1


def cells(tables: Any) -> list[list[list[str]]]:
    return [list(map(list, zip(*(c._cells for c in t.columns)))) for t in tables]


def test_one_table_and_one_picture(tmp_path: Path) -> None:
    first = {MAP: 0.2, 'coco/a_precision': 0.1, 'coco/b_precision': 0.3, 'step': 2}
    last = {MAP: 0.3, 'coco/a_precision': 0.5, 'coco/b_precision': 0.1, 'step': 2}
    log(tmp_path / 'plain/1', *epochs(1, 1.0, 1.0), {MAP: 0.4, 'step': 1}, first)
    log(tmp_path / 'ours/1', *epochs(1, 1.0, 1.5), last)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    runs, classes = cells(compare(folders, tmp_path / 'a/b.png'))
    assert runs == [
        ['plain', '20.0', '40.0', '1', '2 epochs', '1.000', '0.33'],
        ['ours', '30.0', '30.0', '2', '2 epochs', '1.250', '0.42'],
    ]
    assert classes == [
        ['a', '10.0', '50.0', '+40.0'],
        ['b', '30.0', '10.0', '-20.0'],
    ]
    picture = cv2.imread(str(tmp_path / 'a/b.png'))
    # two rows of panels
    assert picture.shape[0] > picture.shape[1] / 2


@pytest.mark.parametrize(
    ('names', 'called'),
    [
        # the folders of a plain run, and of the same with a flag and with a config
        (
            ('retina_r18_50e_digits', 'retina_r18_50e_digits_ema'),
            ('…digits', '…digits_ema'),
        ),
        (
            ('retina_r18_50e_digits', 'retina_r18_ema-50e_digits'),
            ('…50e_digits', '…ema-50e_digits'),
        ),
        (('gfl_plain', 'gfl_ema'), ('gfl_plain', 'gfl_ema')),
        (('plain/retina_r18_50e', 'ema/retina_r18_50e'),) * 2,
    ],
)
def test_a_terminal_of_80_columns_tells_runs_apart(
    names: tuple[str, str],
    called: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path(name) for name in names]
    for folder in folders:
        log(folder / '1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    (table,) = compare(folders, Path('a.png'))
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    # a name may go on in the next line
    rows = re.findall(r'^│ (\S+) +│(.*)', capture.get(), re.MULTILINE)
    shown = [name if '40.0' in rest else f'+{name}' for name, rest in rows]
    assert ' '.join(shown).replace(' +', '') == ' '.join(called)


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    log(tmp_path / 'plain/1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    twice = [tmp_path / 'plain', tmp_path / 'plain']
    with pytest.raises(ValueError, match='plain: this run is given twice'):
        compare(twice, tmp_path / 'a.png')


def test_a_class_without_objects_is_left_out(tmp_path: Path) -> None:
    for name, values in (('plain', (0.1, 0.2, math.nan)), ('ours', (0.3, 0.1, 0.4))):
        keys = (f'coco/{each}_precision' for each in 'abc')
        entry = {MAP: 0.2, **dict(zip(keys, values)), 'step': 1}
        log(tmp_path / name / '1', *epochs(1, 1.0), entry)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    _, classes = cells(compare(folders, tmp_path / 'a.png'))
    assert classes == [['a', '10.0', '30.0', '+20.0'], ['b', '20.0', '10.0', '-10.0']]


def test_an_unknown_score_is_not_the_best(tmp_path: Path) -> None:
    scores = {1: math.nan, 2: 5.0, 3: 4.0}
    assert Curve('epochs', 3, [], scores).best() == (2, 5.0)
    assert Curve('epochs', 3, [], scores, less=True).best() == (3, 4.0)


def test_the_task_loss_is_that_without_its_weight() -> None:
    entry = dict(loss=2.0, loss_sd_a=0.5, loss_sd_b=0.3)
    assert task_loss(entry) == pytest.approx(1.2)
    assert task_loss(dict(entry, sd_task_weight=0.3)) == pytest.approx(4.0)
    assert math.isnan(task_loss(dict(entry, sd_task_weight=0.0)))


def test_every_curve_is_told_apart_and_named() -> None:
    curve = Curve('epochs', 1, [dict(step=10.0, at=1.0, time=1.0, loss=1.0)], {1: 5.0})
    axes = plt.figure().subplots(1, 3)
    names = ['_plain', *(f'run {i}' for i in range(20))]
    draw_curves(axes, 'mIoU', dict.fromkeys(names, curve))
    looks = {(line.get_color(), line.get_marker()) for line in axes[0].lines}
    assert len(looks) == 21
    (legend,) = axes[0].figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
    ('seeds', 'cautious'),
    [
        ((None,), False),
        ((0, 0), False),
        ((0, 1), True),
        ((0, None), True),
        ((None, None), True),
    ],
)
def test_runs_of_several_seeds_differ_by_chance(
    seeds: tuple[int | None, ...], cautious: bool, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ('plain', 'ours')][: len(seeds)]
    for folder, seed in zip(folders, seeds):
        log(folder / '1', *epochs(1, 1.0, 1.0), {MAP: 0.4, 'step': 1})
        config = Config(dict(randomness=dict(seed=seed)))
        config.dump(str(folder / '1/vis_data/config.py'))
    (table,) = compare(folders, tmp_path / 'a.png')
    assert (table.caption is not None) == cautious


BOXES = {1: [(0, 0, 10, 10), (20, 0, 30, 10)], 2: [(0, 0, 10, 10)]}


def truth(folder: Path) -> Path:
    """Write the annotations of two images: class a, and one of class b."""
    labels = {(1, 1): 3}
    annotations = [
        dict(
            id=1 + len(BOXES[1]) * (image - 1) + i,
            image_id=image,
            iscrowd=0,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            category_id=labels.get((image, i), 7),
        )
        for image, boxes in BOXES.items()
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    images = [dict(id=i, width=64, height=64, file_name=f'{i}.jpg') for i in BOXES]
    # labels go by their order here, as in MMDetection, and not by their ids
    categories = [dict(id=7, name='a'), dict(id=3, name='b')]
    path = folder / 'coco.json'
    coco = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(coco))
    return path


def detections(image: int, *rows: tuple[Any, int, float]) -> dict[str, Any]:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float)
    labels = torch.tensor([row[1] for row in rows])
    scores = torch.tensor([row[2] for row in rows])
    found = dict(bboxes=boxes, labels=labels, scores=scores)
    return dict(img_id=image, pred_instances=found)


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


def test_classes_of_a_run_are_those_of_its_config(tmp_path: Path) -> None:
    assert class_names(tmp_path) == []
    path = tmp_path / '1/vis_data/config.py'
    path.parent.mkdir(parents=True)
    dataset = "type='PascalVOCDataset'"
    text = "default_scope = 'mmseg'\nval_dataloader = dict(dataset=dict({}))\n"
    path.write_text(text.format(dataset))
    assert class_names(tmp_path)[:3] == ['background', 'aeroplane', 'bicycle']
    path.write_text(text.format(f"{dataset}, metainfo=dict(classes=('a', 'b'))"))
    assert class_names(tmp_path) == ['a', 'b']


def test_the_picture_has_a_panel_for_all_that_is_known(tmp_path: Path) -> None:
    scores, steps = {1: 10.0, 2: 20.0}, [dict(step=10.0, at=1.0, time=1.0, loss=1.0)]
    curve = Curve('epochs', 2, steps, scores)
    calibration = Calibration(*np.array([[0.35, 1.0], [0.2, 0.9], [40, 5]]))
    drawn = {}
    figure = plt.figure()
    for name, draw, given in (
        ('classes', draw_classes, (['p', 'q'], dict(a=2.0, b=-1.5))),
        ('counts', draw_counts, (dict(p=calibration, q=calibration),)),
        ('calibration', draw_calibration, (dict(p=calibration),)),
    ):
        drawn[name] = figure.add_subplot()
        draw(drawn[name], *given)
    bars = drawn['classes'].patches
    assert [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in bars] == [
        (-1.5, INKS[0]),
        (2.0, INKS[1]),
    ]
    assert drawn['classes'].get_xlabel() == 'q − p, percentage points'
    # next to each other, in the bins of 30 to 40 and of 90 to 100 %
    bars = drawn['counts'].patches
    assert [bar.get_height() for bar in bars] == [40, 5, 40, 5]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert centres == pytest.approx([33, 93, 37, 97])
    line = drawn['calibration'].lines[1]
    assert line.get_xydata().tolist() == [[35, 20], [100, 90]]
    # a run and its teacher have one training
    draw_losses(plt.figure().add_subplot(), dict(p=curve, q=replace(curve)))
    assert [line.get_label() for line in plt.gca().lines] == ['p']
    draw_comparison(tmp_path / 'a.png', dict(mIoU=dict(p=curve)), {}, {})
    assert cv2.imread(str(tmp_path / 'a.png')).shape == (462, 1430, 3)


def test_predictions_of_each_run(tmp_path: Path) -> None:
    annotations, files = truth(tmp_path), []
    for name, label in (('one', 0), ('other', 1)):
        log(tmp_path / name / '1', *epochs(1, 1.0), {MAP: 0.2, 'step': 1})
        files.append(tmp_path / f'{name}.pkl')
        found = [detections(2, ((0, 0, 10, 10), label, 0.75))]
        files[-1].write_bytes(pickle.dumps(found))
    folders = [tmp_path / 'one', tmp_path / 'other']
    both = dict(predictions=files, annotations=annotations)
    _, _, calibration = cells(compare(folders, tmp_path / 'a.png', **both))
    # right, and wrong
    assert calibration == [['one', '1', '25.00 %'], ['other', '1', '75.00 %']]
    with pytest.raises(ValueError, match='--predictions: 1 for 2 runs'):
        compare(folders, tmp_path / 'a.png', predictions=files[:1])


def test_a_teacher_that_was_validated_is_a_row_of_its_own(tmp_path: Path) -> None:
    steps = epochs(1, 1.0, 1.0)
    # both, as `validate='both'` logs them; there is no teacher at the first validation
    both = {MAP: 0.3, f'teacher/{MAP}': 0.5, 'step': 2}
    log(tmp_path / 'ours/1', *steps, {MAP: 0.2, 'step': 1}, both)
    log(tmp_path / 'other/1', *steps, {f'teacher/{MAP}': 0.6, 'step': 2})
    log(tmp_path / 'plain/1', *steps, {MAP: 0.4, 'step': 2})
    folders = [tmp_path / name for name in ('ours', 'other', 'plain')]
    (table,) = cells(compare(folders, tmp_path / 'a.png'))
    assert [row[:4] for row in table] == [
        ['ours', '30.0', '30.0', '2'],
        ['other (teacher)', '60.0', '60.0', '2'],
        ['plain', '40.0', '40.0', '2'],
        ['ours (teacher)', '50.0', '50.0', '2'],
    ]

    # by the name in the log too
    metrics = [f'teacher/{MAP}']
    assert cells(compare(folders, tmp_path / 'a.png', metrics=metrics)) == [table]


def test_a_model_of_a_student_and_a_teacher_is_one_run(tmp_path: Path) -> None:
    both = {f'student/{MAP}': 0.3, f'teacher/{MAP}': 0.5, 'step': 1}
    log(tmp_path / 'soft/1', *epochs(1, 1.0), both)
    tables = compare([tmp_path / 'soft'], tmp_path / 'a.png')
    assert [table.title for table in tables] == [f'student/{MAP}', f'teacher/{MAP}']
    assert [rows[0][1] for rows in cells(tables)] == ['30.0', '50.0']


def test_of_errors_the_smallest_is_the_best(tmp_path: Path) -> None:
    steps = [dict(loss=1.0, step=at, time=0.5) for at in (5, 10)]
    log(tmp_path / 'a/1', *steps, dict(rmse=3.0, step=5), dict(rmse=4.0, step=10))
    assert Run.read(tmp_path / 'a').curve('rmse').best() == (5, 3.0)
    (row,) = cells(compare([tmp_path / 'a'], tmp_path / 'a.png'))[0]
    assert row[1:4] == ['4.0', '3.0', '5']


def test_each_metric_has_panels_of_its_own(tmp_path: Path) -> None:
    scores = {MAP: 0.3, 'coco/segm_mAP': 0.2, 'step': 1}
    log(tmp_path / 'one/1', *epochs(1, 1.0), scores)
    tables = compare([tmp_path / 'one'], tmp_path / 'a.png')
    assert [table.title for table in tables] == [MAP, 'coco/segm_mAP']
    height, width, _ = cv2.imread(str(tmp_path / 'a.png')).shape
    assert height / width == pytest.approx(2 * 4.2 / 13, abs=0.01)
    compare([tmp_path / 'one'], tmp_path / 'a.png', metrics=['coco/segm_mAP'])
    height, width, _ = cv2.imread(str(tmp_path / 'a.png')).shape
    assert height / width == pytest.approx(4.2 / 13, abs=0.01)


def test_says_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no run has logged its training there'):
        compare([tmp_path], tmp_path / 'a.png')
    log(tmp_path / 'one/1', *epochs(1, 1.0), {MAP: 0.2, 'step': 1})
    log(tmp_path / 'two/1', *epochs(1, 1.0), {'mIoU': 0.2, 'step': 1})
    folders = [tmp_path / 'one', tmp_path / 'two']
    with pytest.raises(ValueError, match=f'in common: one: {MAP}; two: mIoU'):
        compare(folders, tmp_path / 'a.png')
    with pytest.raises(ValueError, match="two: has logged no 'coco/bbox_mAP'"):
        compare(folders, tmp_path / 'a.png', metrics=[MAP])
    with pytest.raises(ValueError, match='--names: 1 for 2 runs'):
        compare(folders, tmp_path / 'a.png', names=['x'])
    np.savez(tmp_path / 'no.npz', a=1)
    (tmp_path / 'no.pkl').write_bytes(pickle.dumps([1]))
    for name in ('no.npz', 'no.pkl', 'gone.pkl'):
        with pytest.raises(ValueError, match='--predictions: '):
            read_predictions(tmp_path / name)
