"""Which validation of a log was when, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from run_files import log

from mmselfdistill.commands.logs import config_at, counts_epochs, entries_of
from mmselfdistill.commands.runs import Run

LOOP: dict[str, Any] = dict(type='IterBasedTrainLoop', max_iters=95)


def iterations(*steps: int, **more: Any) -> list[dict[str, Any]]:
    return [dict(loss=1.0, step=step, time=0.5, **more) for step in steps]


def scored(*scores: float) -> list[dict[str, Any]]:
    """Return validations of a run of iterations, by MMEngine's default."""
    return [dict(mIoU=score, step=0) for score in scores]


def write(folder: Path, cfg: dict[str, Any], *entries: dict[str, Any]) -> None:
    log(folder, *entries)
    Config(cfg).dump(str(folder / 'vis_data/config.py'))


def scores_of(folder: Path) -> tuple[str, dict[int, float]]:
    curve = Run.read(folder).curve('mIoU')
    return curve.unit, curve.scores


@pytest.mark.parametrize('more', [{}, dict(epoch=1)])
def test_a_run_of_iterations_that_logs_its_epoch(
    more: dict[str, Any], tmp_path: Path
) -> None:
    # logged each 30, validated each 25, and at the end
    entries = [
        *scored(10.0),
        *iterations(30, **more),
        *scored(40.0),
        *iterations(60, **more),
        *scored(20.0),
        *iterations(90, **more),
        *scored(30.0),
    ]
    write(tmp_path / '1', dict(train_cfg=dict(LOOP, val_interval=25)), *entries)
    expected = {25: 10.0, 50: 40.0, 75: 20.0, 95: 30.0}
    assert scores_of(tmp_path) == ('iterations', expected)
    assert Run.read(tmp_path).curve('mIoU').best() == (50, 40.0)


def test_intervals_that_change_and_a_late_begin(tmp_path: Path) -> None:
    train_cfg = dict(
        LOOP, val_interval=10, val_begin=30, dynamic_intervals=[(60, 5), (70, 20)]
    )
    scores = [float(at) for at in (30, 40, 50, 60, 65, 80, 95)]
    write(tmp_path / '1', dict(train_cfg=train_cfg), *iterations(1), *scored(*scores))
    assert scores_of(tmp_path)[1] == {int(score): score for score in scores}


def test_generations_make_a_run_longer(tmp_path: Path) -> None:
    hook = dict(type='mmselfdistill.GenerationHook', generations=2)
    hooks = dict(self_distill=hook, timer=None)
    train_cfg = dict(LOOP, max_iters=8, val_interval=4)
    entries = [*iterations(3), *scored(4.0, 8.0), *iterations(10), *scored(12.0, 16.0)]
    write(tmp_path / '1', dict(train_cfg=train_cfg, default_hooks=hooks), *entries)
    assert scores_of(tmp_path)[1] == {4: 4.0, 8: 8.0, 12: 12.0, 16: 16.0}


def test_without_an_interval_it_is_that_of_mmengine(tmp_path: Path) -> None:
    # nothing is logged before the first validation
    train_cfg = dict(LOOP, max_iters=2500)
    entries = [*scored(10.0, 20.0), *iterations(2010), *scored(30.0)]
    write(tmp_path / '1', dict(train_cfg=train_cfg), *entries)
    assert scores_of(tmp_path)[1] == {1000: 10.0, 2000: 20.0, 2500: 30.0}


def test_a_resumed_run_of_iterations_goes_on(tmp_path: Path) -> None:
    cfg: dict[str, Any] = dict(train_cfg=dict(LOOP, val_interval=20))
    write(tmp_path / '1', cfg, *scored(20.0, 40.0), *iterations(50))
    # before its first entry, at 50, it was resumed at 40
    resumed = dict(cfg, resume=True)
    write(tmp_path / '2', resumed, *iterations(50), *scored(60.0), *iterations(100))
    assert scores_of(tmp_path)[1] == {20: 20.0, 40: 40.0, 60: 60.0}


def test_without_a_config_it_is_the_last_iteration_that_was_logged(
    tmp_path: Path,
) -> None:
    entries = [*iterations(50), *scored(5.0), *iterations(100), *scored(9.0)]
    log(tmp_path / '1', *entries)
    assert scores_of(tmp_path) == ('iterations', {50: 5.0, 100: 9.0})
    assert not dict(config_at(tmp_path / 'config.py'))


def test_epochs_are_counted_where_the_metrics_count_them() -> None:
    steps = iterations(10, 20, epoch=2)
    # without a config, or of a loop of one's own
    for cfg in ({}, dict(train_cfg=dict(type='MyLoop'))):
        assert counts_epochs(steps, cfg)
        assert counts_epochs([*steps, dict(mIoU=1.0, step=2)], cfg)
        assert not counts_epochs([*steps, dict(mIoU=1.0, step=20)], cfg)
        assert not counts_epochs([*steps, dict(mIoU=1.0, step=0)], cfg)


@pytest.mark.parametrize('more', [{}, dict(epoch=1)])
@pytest.mark.parametrize(
    ('by_epoch', 'metric_by_epoch'), [(True, True), (True, False), (False, False)]
)
def test_a_config_says_whether_epochs_are_counted(
    by_epoch: bool, metric_by_epoch: bool, more: dict[str, Any]
) -> None:
    cfg = dict(
        train_cfg=dict(by_epoch=by_epoch, max_epochs=1, max_iters=1),
        default_hooks=dict(logger=dict(log_metric_by_epoch=metric_by_epoch)),
    )
    # an epoch of one iteration: nothing but the config tells
    entries = [*iterations(1, **more), dict(mIoU=1.0, step=1)]
    assert counts_epochs(entries, cfg) == (by_epoch and metric_by_epoch)


def test_a_run_by_epochs_that_logs_its_iterations(tmp_path: Path) -> None:
    """Epochs of 100 iterations, or of 130, as MMSegmentation's log processor counts."""
    cfg = dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4))
    for length, folder in ((100, tmp_path / 'a'), (130, tmp_path / 'b')):
        entries: list[dict[str, Any]] = []
        for epoch in range(4):
            logged = (epoch * length + at for at in (50, 100))
            scored = dict(mIoU=10.0 * epoch, step=epoch + 1)
            entries += [*iterations(*logged), scored]
        # the second epoch was begun again
        write(folder / '1', cfg, *entries[:5])
        write(folder / '2', dict(cfg, resume=True), *entries[3:])
        run = Run.read(folder)
        curve = run.curve('mIoU')
        assert curve.unit == 'epochs'
        assert curve.scores == {1: 0.0, 2: 10.0, 3: 20.0, 4: 30.0}
        assert [entry['at'] for entry in run.train] == [1, 1, 2, 2, 3, 3, 4, 4]
        # half a second each, up to the last that is logged
        hours = curve.hours_at([4])
        assert hours * 3600 == pytest.approx([run.train[-1]['step'] / 2])


def test_a_segmentor_that_trains_by_epochs(data: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(data / 'mmseg.py')
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    cfg.val_dataloader = cfg.train_dataloader
    cfg.val_evaluator = dict(type='IoUMetric')
    cfg.val_cfg = dict(type='ValLoop')
    cfg.default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
    cfg.work_dir = str(tmp_path / 'run')
    # by their names, MMEngine gives another run's of this process, with its folder
    cfg.experiment_name = 'segmentor-by-epochs'
    cfg.visualizer = None
    assert not cfg.log_processor.by_epoch
    Runner.from_cfg(cfg).train()
    run = Run.read(tmp_path / 'run')
    curve = run.curve('mIoU')
    assert (curve.unit, sorted(curve.scores)) == ('epochs', [1, 2, 3])
    assert [entry['at'] for entry in run.train] == [1, 1, 2, 2, 3, 3]
    assert curve.iterations_at(2) == 4


def test_time_at_the_end_of_an_epoch_of_a_run_that_goes_on(tmp_path: Path) -> None:
    # 100 iterations of a second in an epoch, stopped at the 10th of the third
    steps = [
        dict(loss=1.0, epoch=1 + (at - 1) // 100, iter=at, step=at)
        for at in range(10, 211, 10)
    ]
    scores = [dict(mIoU=30.0, step=1), dict(mIoU=40.0, step=2)]
    log(tmp_path / '1', *(dict(each, time=1.0) for each in steps), *scores)
    curve = Run.read(tmp_path).curve('mIoU')
    hours = curve.hours_at([1, 2, 3])
    assert hours * 3600 == pytest.approx([100, 200, 210])


def test_only_the_last_line_may_be_broken(tmp_path: Path) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text('{"step": 1}\n{"step":')
    assert entries_of(path) == [dict(step=1)]
    path.write_text('{"step":\n{"step": 1}')
    with pytest.raises(ValueError, match=r'scalars\.json, line 1: '):
        entries_of(path)
