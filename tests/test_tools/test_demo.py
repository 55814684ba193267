"""The demo's last lines say what its curves hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmselfdistill.commands.runs import Curve
from tools.demo import TASKS, make_arms, minutes, verdict
from tools.demo_arms import Arm
from tools.demo_models import disagreement
from tools.demo_pictures import ENLARGED, draw_sample, make_visualizer

EPOCHS = 4
STEPS = 2  # in an epoch


def write_run(folder: Path, scores: dict[int, float], seconds: list[float]) -> Curve:
    """Write the log of a run as MMEngine does, and read it."""
    entries: list[dict[str, Any]] = [
        dict(loss=1.0, epoch=1 + step // STEPS, step=step + 1, time=value)
        for step, value in enumerate(seconds)
    ]
    metric = TASKS['det'].metric
    entries += [{metric: score, 'step': epoch} for epoch, score in scores.items()]
    log = folder / '1' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(entry) for entry in entries))
    cfg = Config(dict(train_cfg=dict(max_epochs=EPOCHS)))
    return Arm('a run', cfg, folder, metric).curve()


def test_the_verdict_is_computed_from_both_curves(tmp_path: Path) -> None:
    plain = write_run(tmp_path / 'plain', {4: 0.25}, [60, 60, 60, 60, 90, 90, 90, 90])
    ours = write_run(tmp_path / 'ours', {2: 0.23, 4: 0.22}, [60, 60, 60, 60] * 2)
    assert (minutes(plain), minutes(ours)) == (pytest.approx(10), pytest.approx(8))
    text = verdict(TASKS['det'], ours, plain)
    assert text.startswith('-3.0 box AP over the plain run, in 0.80 times its time')


def test_each_seed_has_a_folder_of_its_own(tmp_path: Path) -> None:
    given = dict(task='det', work_dir=tmp_path, data=tmp_path)
    folders = [
        [a.folder for a in make_arms(TASKS['det'], argparse.Namespace(**given, seed=s))]
        for s in (0, 1)
    ]
    names = [TASKS['det'].unlabeled, TASKS['det'].plain]
    assert folders[0] == [tmp_path / 'det' / name for name in names]
    assert folders[1] == [tmp_path / 'det_seed1' / name for name in names]


def boxes(*rows: tuple[float, ...]) -> Any:
    """Return the prediction of boxes (x1, y1, x2, y2, label, score)."""
    table = torch.tensor(rows)
    found = InstanceData(
        bboxes=table[:, :4], labels=table[:, 4].long(), scores=table[:, 5]
    )
    return DetDataSample(pred_instances=found)


def test_boxes_without_a_like_one_are_what_two_models_disagree_on() -> None:
    one = boxes((0, 0, 8, 8, 1, 0.9), (20, 20, 30, 30, 2, 0.5), (0, 0, 8, 8, 3, 0.3))
    # moved by a cell, and of another class; what is unsure does not count
    other = boxes((1, 0, 9, 8, 1, 0.8), (20, 20, 30, 30, 4, 0.75))
    assert disagreement(one, other) == pytest.approx(0.5 + 0.75)
    assert disagreement(one, one) == 0


def test_a_drawing_leaves_the_sample_and_the_image_alone() -> None:
    sample = boxes((2, 2, 12, 12, 1, 0.9))
    sample.gt_instances = sample.pred_instances.clone()
    image = np.zeros((64, 64, 3), np.uint8)
    meta = dict(classes=('zero', 'one'), palette=[(255, 0, 0), (0, 255, 0)])
    drawn = draw_sample(make_visualizer('mmdet', meta), image, sample)
    assert drawn.shape == (64, 64, 3) and drawn.any()
    # the left edge of the enlarged box, in the colour of its class
    red, green, blue = drawn[24, 2 * ENLARGED].tolist()
    assert (red, blue) == (0, 0) and green >= 200
    assert sample.pred_instances.bboxes.tolist() == [[2, 2, 12, 12]]
    assert not image.any()


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    write_run(tmp_path, {2: 0.1, 4: 0.2}, [1.0] * EPOCHS * STEPS)
    again = dict(loss=1.0, epoch=4, step=8, time=5.0)
    log = tmp_path / '2' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    score = {TASKS['det'].metric: 0.3, 'step': 4}
    log.write_text('\n'.join(map(json.dumps, (again, score))))
    cfg = Config(dict(train_cfg=dict(max_epochs=EPOCHS)))
    curve = Arm('a run', cfg, tmp_path, TASKS['det'].metric).curve()
    assert curve.score_at(2) == pytest.approx(10)
    assert curve.score_at(4) == pytest.approx(30)
    assert [entry['time'] for entry in curve.train] == [1.0] * 7 + [5.0]
