"""Training goes on after a run that failed, and a hook serves a second run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmselfdistill
from mmselfdistill.hooks import run
from mmselfdistill.hooks.restart import Beginning

if TYPE_CHECKING:
    from mmengine.config import Config

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant', momentum=0.5)
EVERY_2 = dict(type='mmselfdistill.GenerationHook', interval=2, by_epoch=False)
TWO = dict(type='mmselfdistill.GenerationHook', generations=2)


class BreakError(Exception):
    pass


def watched(runner: Runner, before: Callable[[Runner], None]) -> Runner:
    """Return a runner that calls a function before each iteration."""

    def before_train_iter(runner: Runner, **_: Any) -> None:
        before(runner)

    hook = Hook()
    hook.before_train_iter = before_train_iter
    runner.register_hook(hook, 'LOWEST')
    return runner


def end(runs: Runs, cfg: Config, fail_at: int | None = None) -> dict[str, Any]:
    """Train, once more after a failure, and return what is saved at the end."""
    failures = [fail_at]

    def before(runner: Runner) -> None:
        # the same numbers in an iteration whether or not it was begun before
        torch.manual_seed(runner.iter)
        if runner.iter in failures:
            failures.clear()
            raise BreakError

    runner = watched(runs.build(cfg), before)
    if fail_at is not None:
        with pytest.raises(BreakError):
            runner.train()
        assert runner.iter == fail_at
    runner.train()
    assert runner.iter == runner.max_iters
    assert 'forward' not in vars(runner.model)
    held = runs.checkpoint(cfg)
    return {key: held[key] for key in ('state_dict', 'optimizer', 'mmselfdistill')}


@pytest.mark.parametrize(
    ('hook', 'iters', 'fail_at'),
    [
        (EMA, 5, 3),
        (EMA, 3, 0),
        (EVERY_2, 5, 1),
        (EVERY_2, 5, 3),
        ({**EVERY_2, 'student': 'reinit'}, 5, 3),
        (TWO, 3, 2),
        (TWO, 3, 4),
    ],
    ids=str,
)
def test_a_run_that_failed_goes_on(
    hook: dict[str, Any], iters: int, fail_at: int, runs: Runs
) -> None:
    def config() -> Config:
        cfg = runs.config('gfl', hook, iters=iters)
        # the loader restarts: give it the same batch always
        cfg.train_dataloader.sampler.shuffle = False
        cfg.train_dataloader.dataset.indices = 2
        return cfg

    whole = end(runs, config())
    assert runs.differences(whole, end(runs, config(), fail_at)) == []


def test_a_boundary_that_was_interrupted_is_made_with_the_same_teacher(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = {**EVERY_2, 'student': 'reinit'}
    runner = runs.build(runs.config('gfl', hook, iters=3))
    students: list[dict[str, Any]] = []
    watched(runner, lambda runner: students.append(runs.state(runner.model)))
    restore = Beginning.restore

    def interrupted(self: Beginning, runner: Runner) -> None:
        # the student has fresh weights by now
        monkeypatch.setattr(Beginning, 'restore', restore)
        students.append(runs.state(runner.model))
        raise KeyboardInterrupt

    ends: list[dict[str, Any]] = []
    last = Hook()
    last.after_train_iter = lambda runner, **_: ends.append(runs.state(runner.model))
    runner.register_hook(last, 'LOWEST')
    monkeypatch.setattr(Beginning, 'restore', interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert len(ends) == 2
    runner.train()
    teacher = runs.state(runs.hook(runner).distiller.teacher)
    assert runs.differences(teacher, ends[1]) == []
    assert runs.differences(students[2], students[3]) == []


def test_a_hook_serves_another_run(runs: Runs) -> None:
    hook = mmselfdistill.GenerationHook(generations=2)
    for name in ('gfl', 'segformer'):
        cfg = runs.config(name, iters=3)
        cfg.default_hooks.self_distill = hook
        seen: list[bool] = []

        def before(runner: Runner, seen: list[bool] = seen) -> None:
            assert hook.distiller is not None
            assert hook.distiller.student is runner.model
            seen.append(hook.distiller.teacher is not None)

        watched(Runner(**cfg, experiment_name=f'again-{name}'), before).train()
        assert seen == 3 * [False] + 3 * [True]


def test_the_steps_of_another_run_are_counted_from_0(runs: Runs) -> None:
    hook = mmselfdistill.EMATeacherHook(schedule='constant', momentum=0.5)
    teachers = []
    for _ in range(2):
        cfg = runs.config('gfl', iters=2)
        cfg.default_hooks.self_distill = hook
        runner = Runner(**cfg, experiment_name=f'again-{len(teachers)}')
        runner.train()
        assert hook.updates == 2 and hook.distiller is not None
        teachers.append(runs.state(hook.distiller.teacher))
    # the share that a teacher keeps grows with them
    assert runs.differences(*teachers) == []


def test_another_run_has_no_metrics_of_the_last_ones_teacher(runs: Runs) -> None:
    hook = mmselfdistill.GenerationHook(interval=2, by_epoch=False, validate='both')
    found = []
    for iters in (4, 2):
        cfg = runs.config('segformer', iters=iters, val_interval=2)
        cfg.default_hooks.self_distill = hook
        runner = Runner(**cfg, experiment_name=f'validated-{iters}')
        runner.train()
        found.append('val/teacher/mIoU' in runner.message_hub.log_scalars)
        assert 'val/mIoU' in runner.message_hub.log_scalars
    # the second ends with its first generation
    assert found == [True, False]


def test_a_run_that_goes_back_to_its_first_generation_has_no_teacher(
    runs: Runs,
) -> None:
    hook = mmselfdistill.GenerationHook(interval=2, by_epoch=False)
    cfg = runs.config('gfl', iters=4)
    cfg.default_hooks.self_distill = hook
    cfg.default_hooks.checkpoint.interval = 1
    taught: list[bool] = []

    def before(runner: Runner) -> None:
        taught.append(runs.hook(runner).distiller.teacher is not None)
        if len(taught) == 4:
            raise BreakError

    runner = watched(Runner(**cfg, experiment_name='goes-back'), before)
    with pytest.raises(BreakError):
        runner.train()
    runner.resume(f'{cfg.work_dir}/iter_1.pth')
    runner.train()
    assert taught == [False, False, True, True, False, True, True]


def test_the_first_iteration_after_a_failure_is_checked(runs: Runs) -> None:
    checked: list[bool] = []

    def before(runner: Runner) -> None:
        checked.append(runs.hook(runner).distiller.labeled.checked)
        if len(checked) == 2:
            raise BreakError

    runner = watched(runs.build(runs.config('gfl', EMA, iters=3)), before)
    with pytest.raises(BreakError):
        runner.train()
    runner.train()
    assert checked == [False, True, False, True]


def test_histories_of_the_terms_are_short(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, 'HISTORY', 3)
    runner = runs.train(runs.config('gfl', EMA, iters=6))
    lengths = {
        key: len(history.data[0])
        for key, history in runner.message_hub.log_scalars.items()
        if key.startswith('train/')
    }
    ours = {key for key in lengths if 'sd_' in key}
    assert len(ours) == 3 * len(runs.hook(runner).distiller.terms)
    assert {lengths[key] for key in ours} == {3}
    assert {lengths[key] for key in lengths.keys() - ours} == {6}


def test_a_failed_run_does_not_teach_the_next_run_of_the_model(runs: Runs) -> None:
    cfg = runs.config('gfl', EMA, iters=2)
    failed = runs.build(cfg)
    failing: Any = lambda *args, **kwargs: 1 / 0  # noqa: E731
    vars(failed.model)['loss'] = failing
    with pytest.raises(ZeroDivisionError):
        failed.train()
    del vars(failed.model)['loss']
    cfg.model = failed.model
    runner = Runner(**cfg, experiment_name='next')
    runner.train()
    assert runs.hook(runner).distiller.computed == 2
    assert runs.hook(failed).distiller.computed == 0
    assert 'forward' not in vars(failed.model)


@pytest.mark.parametrize(
    ('hook', 'warned'),
    [
        (dict(schedule=dict(begin=0.5)), True),
        (dict(loss_weight=0), False),
        (dict(terms=dict(features=dict(weight=0), logits=dict(weight=0))), False),
    ],
    ids=str,
)
def test_silence_is_no_surprise_where_it_was_asked_for(
    hook: dict[str, Any], warned: bool, runs: Runs
) -> None:
    cfg = runs.config('segformer', {**EMA, **hook}, iters=1)
    text = runs.log(runs.train(cfg))
    assert text.count('no term was computed') == warned


def test_a_run_that_is_resumed_behind_its_schedule_has_nothing_to_say(
    runs: Runs,
) -> None:
    hook = dict(EMA, schedule=dict(type='constant', end=0.5))
    cfg = runs.config('segformer', hook, iters=4)
    cfg.default_hooks.checkpoint.interval = 1
    runs.train(cfg, stop_at=3)
    cfg.resume = True
    runner = runs.train(cfg)
    assert runner.iter == 4 and runs.hook(runner).distiller.computed == 0
    logs = [path.read_text() for path in Path(cfg.work_dir).rglob('*.log')]
    assert not any('no term was computed' in log for log in logs)


def test_a_run_that_is_over_has_nothing_to_say(runs: Runs) -> None:
    cfg = runs.config('segformer', EMA, iters=1)
    runs.train(cfg)
    cfg.resume = True
    runner = runs.train(cfg)
    assert runner.iter == 1 and runs.hook(runner).distiller.forwards == 0
    logs = [path.read_text() for path in Path(cfg.work_dir).rglob('*.log')]
    assert not any('no term was computed' in log for log in logs)
