from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from pycocotools import mask as coco_mask

from tools.benchmarks import accuracy, arms, scenes
from tools.benchmarks.accuracy_report import Cell, Compared, corrupted_table, table
from tools.benchmarks.arms import (
    MODELS,
    REGIMES,
    ROOT,
    compose,
    digest,
    settings_hash,
    settings_of,
)
from tools.benchmarks.calibration import binned, calibration_error, matched
from tools.benchmarks.corruption import CORRUPTIONS

FEW = dict(train=12, unlabeled=4)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, 'VAL', 4)


def labels_of(root: Path) -> dict[int, list[Any]]:
    """Return the class and the mask of every annotated object, by scene."""
    coco = json.loads((root / 'annotations/instances_train2017.json').read_text())
    found: dict[int, list[Any]] = {image['id']: [] for image in coco['images']}
    for each in coco['annotations']:
        mask = coco_mask.decode(each['segmentation']).astype(bool)
        found[each['image_id']].append((each['category_id'], mask))
    return found


def map_of(root: Path, scene: int) -> Any:
    path = root / f'annotations/training/ADE_train_{scene:08d}.png'
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def test_wrong_classes_are_wrong_in_both_layouts(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / 'clean', 0, 60, 0, 0.0, 0.0)
    scenes.write_scenes(tmp_path / 'wrong', 0, 60, 0, 0.4, 0.0)
    clean, wrong = labels_of(tmp_path / 'clean'), labels_of(tmp_path / 'wrong')
    changed = 0
    for scene, objects in clean.items():
        label_map = map_of(tmp_path / 'wrong', scene)
        for (before, mask), (after, _) in zip(objects, wrong[scene]):
            changed += before != after
            assert set(label_map[mask]) - {scenes.OTHER} == {after + 1}
    total = sum(map(len, clean.values()))
    # 40 % of about 170, within three standard deviations
    assert abs(changed / total - 0.4) < 3 * math.sqrt(0.4 * 0.6 / total)


def test_missing_objects_are_background(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / 'clean', 0, 60, 0, 0.0, 0.0)
    scenes.write_scenes(tmp_path / 'missing', 0, 60, 0, 0.0, 0.4)
    clean, left = labels_of(tmp_path / 'clean'), labels_of(tmp_path / 'missing')
    gone = 0
    for scene, objects in clean.items():
        label_map = map_of(tmp_path / 'missing', scene)
        kept = [mask for _, mask in left[scene]]
        for _, mask in objects:
            if not any((mask == each).all() for each in kept):
                gone += 1
                assert set(label_map[mask]) <= {scenes.OTHER, scenes.BACKGROUND}
    total = sum(map(len, clean.values()))
    assert gone == total - sum(map(len, left.values()))
    assert abs(gone / total - 0.4) < 3 * math.sqrt(0.4 * 0.6 / total)


def test_scenes_are_of_one_seed_and_of_todays_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regime = replace(REGIMES['few'], train=2, unlabeled=0)
    first, second = (regime.scenes(tmp_path, seed) for seed in (20261127, 20261128))
    assert first != second
    assert json.loads((second / 'digits.json').read_text())['seed'] == 20261128
    made = (first / 'digits.json').stat().st_mtime_ns
    assert regime.scenes(tmp_path, 20261127) == first
    assert (first / 'digits.json').stat().st_mtime_ns == made
    monkeypatch.setattr(scenes, 'VAL', 3)
    regime.scenes(tmp_path, 20261127)
    assert len([*first.glob('val2017/*')]) == 3


def test_a_longer_arm_stretches_the_whole_schedule(tmp_path: Path) -> None:
    model, regime = MODELS['retinanet'], replace(REGIMES['short'], **FEW)
    root = regime.scenes(tmp_path, 0)
    plain = compose(model, regime, root, settings_of(model, 'plain'), 0)
    longer = compose(model, regime, root, settings_of(model, 'longer'), 0)
    expected = round(round(model.iterations * regime.length) * 1.5)
    assert longer.train_cfg.max_iters == longer.train_cfg.val_interval == expected
    often = compose(
        model, replace(regime, validations=6), root, settings_of(model, 'longer'), 0
    )
    assert often.train_cfg.val_interval == expected // 6
    assert (
        longer.param_scheduler[-1].end == longer.param_scheduler[-1].T_max == expected
    )
    # the warm-up is a fixed number of steps
    assert longer.param_scheduler[0] == plain.param_scheduler[0]
    assert digest(longer) != digest(plain)


def test_calibration_error_of_two_bins() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.5])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    # |0.95 - 0.75| on 4 of 5, |0.5 - 1| on 1 of 5
    expected = 100 * (4 / 5 * 0.2 + 1 / 5 * 0.5)
    assert calibration_error(binned(confidence, right)) == pytest.approx(expected, 1e-6)


def test_where_nothing_is_detected_there_is_no_calibration() -> None:
    nothing = torch.zeros(0)
    assert math.isnan(calibration_error(binned(nothing, nothing)))


def test_an_object_is_found_once_and_by_its_class() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [20, 0, 30, 4]]
    )
    labels = torch.tensor([1, 1, 2, 3])
    real = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    found = matched(boxes, labels, real, torch.tensor([1, 3]))
    # the second finds what the first has, the third is of another class, the last
    # overlaps too little
    assert found.tolist() == [1, 0, 0, 0]


def run_of(score: float, average: float) -> dict[str, Any]:
    metrics = {'coco/bbox_mAP': score / 100, 'teacher/coco/bbox_mAP': average / 100}
    return dict(metrics=metrics, seconds=1.0)


def test_arms_are_compared_to_the_best_control_seed_by_seed() -> None:
    scores = dict(
        plain=[(10, 12), (20, 21), (30, 33)],
        view=[(9, 9), (19, 19), (29, 29)],
        ema=[(14, 14), (22, 22), (36, 36)],
    )
    results = {
        f'retinanet/clean/{arm}/{seed}': run_of(*pair)
        for arm, pairs in scores.items()
        for seed, pair in enumerate(pairs)
    }
    cell = Cell('retinanet', 'clean', results)
    assert cell.best_control('ema') == 'plain (average)'
    found = cell.compared('ema', 'plain (average)')
    assert found.differences == pytest.approx([2, 1, 3])
    # Student's t of 2 degrees of freedom at 97.5 %
    assert found.half == pytest.approx(4.302653 * statistics.stdev([2, 1, 3]) / 3**0.5)
    row = '| ema | 3 | 24.0 | 11.1 | +2.0 ± 2.5 (plain (average), 3 seeds) |'
    assert row in table(cell)
    assert str(Compared([1.0])) == '-'
    # a run without a teacher is a control, whatever the regime lists
    drawn = {name: found.mean for name, found in cell.rows_drawn()}
    alone = 'the hook alone, over plain'
    assert drawn == pytest.approx({alone: 4, f'{alone} with views': 5})
    two = {key: run for key, run in results.items() if key[-1] != '2'}
    assert Cell('retinanet', 'clean', two).rows_drawn() == []


def test_runs_of_other_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {
        f'retinanet/few/{arm}/{seed}': run_of(10 + seed, 10)
        for arm in ('plain', 'unlabeled')
        for seed in range(3)
    }
    for key in ('unlabeled/0', 'unlabeled/1', 'plain/2'):
        arm = key.partition('/')[0]
        settings = settings_hash('retinanet', 'few', arm)
        results[f'retinanet/few/{key}']['settings'] = settings
    # a run that does not say it may be of any
    assert Cell('retinanet', 'few', results).outdated() == ''
    monkeypatch.setitem(arms.EARLY, 'begin', 0.7)
    found = Cell('retinanet', 'few', results).outdated()
    assert found == 'Of other settings than now, by seed: unlabeled 0, 1'
    # an arm that there is no more
    results['retinanet/few/gone/0'] = run_of(10, 10)
    cell = Cell('retinanet', 'few', results)
    assert cell.outdated() == found.replace('unlabeled', 'gone 0; unlabeled')
    assert 'gone' not in table(cell)
    del results['retinanet/few/gone/0']
    # what is measured in the runs is not what is trained
    monkeypatch.setitem(REGIMES, 'few', replace(REGIMES['few'], title='another'))
    assert Cell('retinanet', 'few', results).outdated() == found


def test_a_cell_without_a_control_is_shown_without_a_gain() -> None:
    results = {f'retinanet/few/default/{s}': run_of(10 + s, 9) for s in range(2)}
    cell = Cell('retinanet', 'few', results)
    assert '| default | 2 | 10.5 | 0.7 |  | nan | 1 |' in table(cell)
    results['retinanet/few/plain/1'] = run_of(8, 8)
    rows = table(Cell('retinanet', 'few', results)).split('\n')
    # of which seeds a mean is, where they differ
    assert [row.split('|')[2].strip() for row in rows[2:]] == ['1: 1', '1: 1', '2: 0 1']


def test_a_control_that_few_seeds_have_replaces_none() -> None:
    results = {
        f'retinanet/clean/{arm}/{seed}': run_of(score + seed, score + seed)
        for arm, score in dict(plain=10, ema=14).items()
        for seed in range(3)
    }
    results['retinanet/clean/longer/0'] = run_of(13, 13)
    cell = Cell('retinanet', 'clean', results)
    assert cell.best_control('ema') == 'plain'
    # with as many it is the better one
    results |= {f'retinanet/clean/longer/{s}': run_of(13 + s, 13) for s in (1, 2)}
    assert Cell('retinanet', 'clean', results).best_control('ema') == 'longer'


def test_the_best_of_all_validations_is_a_control_where_there_are_several() -> None:
    scores = dict(same_time=[(10, 12), (20, 21)], default=[(14, 13), (22, 24)])
    results = {
        f'retinanet/clean_unlabeled/{arm}/{seed}': dict(run_of(*pair), best=best / 100)
        for arm, pairs in scores.items()
        for seed, (pair, best) in enumerate(zip(pairs, (13.5, 23)))
    }
    cell = Cell('retinanet', 'clean_unlabeled', results)
    assert cell.best_control('default') == 'same_time (best)'
    # the last score of the run with a teacher, not its best
    found = cell.compared('default', 'same_time (best)')
    assert found.differences == pytest.approx([14 - 13.5, 22 - 23])
    assert '| same_time (best) | 2 | 18.2 | 6.7 |  | - | 1 |' in table(cell)


def test_perturbed_scenes_have_a_table_of_the_runs_that_saw_them() -> None:
    plain, ema = run_of(20, 20), run_of(24, 24)
    plain['corrupted'] = dict(zip(CORRUPTIONS, (0.1, 0.08, 0.04, 0.06)))
    ema['corrupted'] = dict(zip(CORRUPTIONS, (0.2, 0.1, 0.06, 0.04)))
    results = {
        'retinanet/clean/plain/0': plain,
        'retinanet/clean/ema/0': ema,
        'retinanet/clean/plain/1': run_of(90, 90),  # not measured there
    }
    *_, first, second = corrupted_table(Cell('retinanet', 'clean', results)).split('\n')
    assert first == '| plain | 1 | 20.0 | 10.0 | 8.0 | 4.0 | 6.0 | 7.0 |'
    assert second == '| ema | 1 | 24.0 | 20.0 | 10.0 | 6.0 | 4.0 | 10.0 |'
    del results['retinanet/clean/plain/0'], results['retinanet/clean/ema/0']
    assert corrupted_table(Cell('retinanet', 'clean', results)) == ''


def test_the_best_score_is_of_the_student_or_its_average(tmp_path: Path) -> None:
    lines = [
        {'coco/bbox_mAP': 0.3, 'teacher/coco/bbox_mAP': 0.35, 'step': 5},
        {'coco/bbox_mAP': 0.2, 'teacher/coco/bbox_mAP': 0.1, 'step': 10},
    ]
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    train = [{'loss': 1.0, 'time': 0.1, 'iter': at, 'step': at} for at in (5, 10)]
    text = '\n'.join(map(json.dumps, [train[0], lines[0], train[1], lines[1]]))
    (folder / 'scalars.json').write_text(text)
    metrics, best = accuracy.scores_of(tmp_path, 'coco/bbox_mAP')
    assert best == 0.35
    assert metrics['coco/bbox_mAP'] == 0.2
    assert metrics['teacher/coco/bbox_mAP'] == 0.1


def test_where_nothing_was_detected_the_score_is_0(tmp_path: Path) -> None:
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [dict(loss=1.0, time=0.1, iter=5, step=5), {'boxes/ece': 1.0, 'step': 5}]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    metrics, best = accuracy.scores_of(tmp_path, 'coco/bbox_mAP')
    assert best == metrics['coco/bbox_mAP'] == metrics['teacher/coco/bbox_mAP'] == 0
    assert metrics['boxes/ece'] == 1.0


def test_a_run_that_fails_ends_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [('unet', 'few', 'plain', seed) for seed in (0, 1)]
    for *_, seed in jobs:
        # taken for scenes, which are not there
        made_of = tmp_path / f'100-1000-0-0-{seed}' / 'scenes.json'
        made_of.parent.mkdir()
        # the worker has the benchmark's own number of scenes
        wanted = dict(scenes.made_of(seed, 100, 1000, 0.0, 0.0), val=1000)
        made_of.write_text(json.dumps(wanted))
    args = argparse.Namespace(
        results=tmp_path / 'results.json', scenes=tmp_path, workers=1
    )
    assert accuracy.run(jobs, args) == jobs
    shown = capsys.readouterr().out
    assert shown.count('failed: ') == 2 and 'training' in shown


def test_a_run_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(MODELS['retinanet'], iterations=10)
    monkeypatch.setitem(MODELS, 'retinanet', short)
    monkeypatch.setitem(REGIMES, 'few', replace(REGIMES['few'], **FEW))
    job = ('retinanet', 'few', 'unlabeled', 0)
    (todo,) = accuracy.missing([job], {}, tmp_path)
    result = accuracy.train(todo, tmp_path)
    assert result['iterations'] == 10
    metrics = result['metrics'].keys()
    assert {'coco/bbox_mAP', 'teacher/coco/bbox_mAP', 'boxes/ece'} <= metrics
    assert result['corrupted'].keys() == CORRUPTIONS.keys()
    kept = {'retinanet/few/unlabeled/0': result}
    accuracy.write(tmp_path / 'results.json', kept)
    again = accuracy.read(tmp_path / 'results.json')
    assert accuracy.missing([job], again, tmp_path) == []


def test_a_worker_that_is_killed_fails_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, 'train', kill_or_train)
    jobs = [('unet', 'few', 'plain', seed) for seed in range(4)]
    args = argparse.Namespace(
        results=tmp_path / 'results.json', scenes=tmp_path, workers=1
    )
    # the second is killed whenever it is begun
    assert accuracy.run(jobs, args) == [jobs[1]]
    assert sorted(accuracy.read(args.results)) == [
        f'unet/few/plain/{seed}' for seed in (0, 2, 3)
    ]


def kill_or_train(job: accuracy.Job, scenes: Path) -> dict[str, Any]:
    if job[-1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(metrics=dict(mIoU=1.0), seconds=1.0)


def runs(pid: int) -> bool:
    # an ended process that nobody has waited for is still listed
    path = Path(f'/proc/{pid}/status')
    return path.is_file() and 'State:\tZ' not in path.read_text()


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / 'parent.py'
    script.write_text(
        """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, sys.argv[1])
from tools.benchmarks.accuracy import end_with_parent
if __name__ == '__main__':
    spawn = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(1, spawn, end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""
    )
    args = [sys.executable, str(script), str(ROOT)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert runs(worker)
        parent.kill()
    limit = time.time() + 30
    while runs(worker) and time.time() < limit:
        time.sleep(0.1)
    assert not runs(worker)
