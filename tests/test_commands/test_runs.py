"""What runs have logged, against figures worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from run_files import MAP, epochs, log

from mmselfdistill.commands.runs import (
    Curve,
    Run,
    class_names,
    percent,
    seed_of,
    task_loss,
)


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
        ('motchallenge-metric/HOTA', 100),
        ('motchallenge-metric/MOTA', 100),
        ('teacher/motchallenge-metric/IDF1', 100),
        ('motchallenge-metric/IDP', 100),
        ('coco/novel_ap50', 100),
        ('reid-metric/R10', 100),
        ('refcoco+_precision@5', 100),
        ('motchallenge-metric/IDSW', 1),
        ('motchallenge-metric/IDFP', 1),
        ('motchallenge-metric/MT', 1),
        ('coco_panoptic/PQ', 1),
        ('mIoU', 1),
        ('aAcc', 1),
        ('mPrecision', 1),
        ('accuracy/top1', 1),
        ('multi-label/mAP', 1),
    ],
)
def test_shares_are_shown_in_percent(metric: str, factor: int) -> None:
    assert percent(metric, 0.25) == 0.25 * factor


def test_cocos_sign_for_nothing_to_find_is_no_score() -> None:
    assert math.isnan(percent('coco/bbox_mAP_l', -1))
    assert percent('mine/balance', -1) == -1


@pytest.mark.parametrize(
    ('metric', 'text'),
    [
        ('coco/bbox_mAP', '87.3'),
        ('reid-metric/R1', '87.3'),
        ('mIoU', '0.9'),
        ('teacher/accuracy/top1', '0.9'),
        ('boxes/ece', '0.9'),
        # of an unknown unit
        ('my/dice', '0.8731'),
        ('val/d0.loss_cls', '0.8731'),
        ('lvis/dental_floss_precision', '87.3'),
    ],
)
def test_only_what_is_known_is_called_percent(
    metric: str, text: str, tmp_path: Path
) -> None:
    log(tmp_path / '1', *epochs(1, 1.0), {metric: 0.8731, 'step': 1})
    curve = Run.read(tmp_path).curve(metric)
    assert (curve.text(1), curve.percent) == (text, text != '0.8731')
    assert curve.less == (metric in ('val/d0.loss_cls', 'boxes/ece'))


def test_a_loss_of_a_validation_is_none_of_training(tmp_path: Path) -> None:
    scores = [dict(mIoU=30.0, loss=0.4, val_loss=0.4, step=at) for at in (1, 2)]
    log(tmp_path / '1', *epochs(1, 1.0, 1.0), *scores)
    run = Run.read(tmp_path)
    assert [entry['loss'] for entry in run.train] == [2.0, 2.0]
    assert run.curve('mIoU').scores == {1: 30.0, 2: 30.0}


def test_an_unknown_score_is_not_the_best(tmp_path: Path) -> None:
    scores = {1: math.nan, 2: 5.0, 3: 4.0}
    assert Curve('epochs', 3, [], scores).best() == (2, 5.0)
    assert Curve('epochs', 3, [], scores, less=True).best() == (3, 4.0)


def test_the_task_loss_is_that_without_its_weight() -> None:
    entry = dict(loss=2.0, loss_sd_a=0.5, loss_sd_b=0.3)
    assert task_loss(entry) == pytest.approx(1.2)
    assert task_loss(dict(entry, sd_task_weight=0.3)) == pytest.approx(4.0)
    assert math.isnan(task_loss(dict(entry, sd_task_weight=0.0)))


def test_classes_of_a_run_are_those_of_its_config(tmp_path: Path) -> None:
    assert class_names(tmp_path) == []
    log(tmp_path / '1', *epochs(1, 1.0))
    path = tmp_path / '1/vis_data/config.py'
    dataset = "type='PascalVOCDataset'"
    text = "default_scope = 'mmseg'\nval_dataloader = dict(dataset=dict({}))\n"
    path.write_text(text.format(dataset))
    assert class_names(tmp_path)[:3] == ['background', 'aeroplane', 'bicycle']
    own = f"{dataset}, metainfo=dict(classes=('a', 'b'))"
    path.write_text(text.format(own))
    assert class_names(tmp_path) == ['a', 'b']
    # of data sets in others, the first
    inside = f"type='ConcatDataset', datasets=[dict({own}), dict({dataset})]"
    path.write_text(text.format(f"type='RepeatDataset', dataset=dict({inside})"))
    assert class_names(tmp_path) == ['a', 'b']
    # MMEngine reads a file of names, and takes any other text for a name
    names = tmp_path / 'names.txt'
    names.write_text('car\nred bus\n')
    path.write_text(text.format(f"{dataset}, metainfo=dict(classes='{names}')"))
    assert class_names(tmp_path) == ['car', 'red bus']
    path.write_text(text.format(f"{dataset}, metainfo=dict(classes='car')"))
    assert class_names(tmp_path) == ['car']


def test_classes_of_a_data_set_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

@DATASETS.register_module()
class Fruit(BaseDataset):
    METAINFO = dict(classes=('apple', 'fig'))
"""
    (tmp_path / 'fruit_of_ones_own.py').write_text(source)
    log(tmp_path / '1', *epochs(1, 1.0))
    text = "val_dataloader = dict(dataset=dict(type='Fruit'))\ncustom_imports = {}\n"
    path = tmp_path / '1/vis_data/config.py'
    path.write_text(text.format("dict(imports=['fruit_of_ones_own'])"))
    assert class_names(tmp_path) == []
    monkeypatch.syspath_prepend(tmp_path)
    assert class_names(tmp_path) == ['apple', 'fig']


def test_a_test_in_the_same_work_dir_is_no_start_of_the_run(tmp_path: Path) -> None:
    log(tmp_path / '1', *epochs(1, 1.0))
    log(tmp_path / '2', *epochs(2, 1.0))
    log(tmp_path / '3', {MAP: 0.5, 'step': 0})
    for start, seed in enumerate((7, 8, 9, 10), 1):
        path = tmp_path / str(start) / 'vis_data/config.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = f"metainfo=dict(classes=('{'abcd'[start - 1]}',))"
        path.write_text(
            f'randomness = dict(seed={seed})\n'
            f'val_dataloader = dict(dataset=dict({dataset}))\n'
        )
    assert (seed_of(tmp_path), class_names(tmp_path)) == (8, ['b'])
    assert seed_of(tmp_path / 'nowhere') is None
