"""Runs of detectors with frozen parts: the same as if the teacher ran them too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from test_resume import compare
from torch import nn

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.core import reuse
from mmselfdistill.core.report import describe

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', momentum=0.5, schedule='constant')
GENERATIONS = dict(type='mmselfdistill.GenerationHook', interval=3, by_epoch=False)
ONCE = 'Run once, since frozen and the same in student and teacher: '
STAGE = f'{ONCE}backbone.conv1, backbone.bn1, backbone.layer1.'
TWICE = "Frozen, but run by the teacher too: its weights are not the student's."


def config(runs: Runs, name: str, hook: dict[str, Any], **length: int) -> Config:
    cfg = runs.config(name, hook, **length)
    cfg.model.backbone.update(frozen_stages=1, norm_eval=True)
    return cfg


def said(runner: Runner, unlabeled: bool = False) -> str:
    (hook,) = (hook for hook in runner.hooks if hasattr(hook, 'distiller'))
    distiller: Any = hook.distiller
    comparison = distiller.unlabeled.comparison if unlabeled else distiller.labeled
    found: str = comparison.reuse.describe()
    return found


class Stem:
    """Counts how often the teacher runs its first convolution, by iteration."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.counts: list[int] = []
        self._teacher: Any = None
        self._now = 0

    def before(self, runner: Runner) -> None:
        self._now = 0
        teacher = self.runs.hook(runner).distiller.teacher
        if teacher is not self._teacher:
            self._teacher = teacher
            modules = teacher.backbone.modules()
            conv = next(m for m in modules if isinstance(m, nn.Conv2d))
            forward = conv.forward

            def counted(x: Any) -> Any:
                self._now += 1
                return forward(x)

            vars(conv)['forward'] = counted

    def after(self, runner: Runner) -> None:
        self.counts.append(self._now)


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn'])
def test_a_running_average(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = Stem(runs)
    ours = runs.train(config(runs, name, EMA, iters=4), stem.before, stem.after)
    assert said(ours) == STAGE
    # the average moves the teacher, but not what is the same in both
    assert stem.counts == [1, 0, 0, 0]
    monkeypatch.setattr(reuse, 'frozen_modules', lambda student: {})
    plain = runs.train(config(runs, name, EMA, iters=4))
    assert said(plain) == ''
    assert runs.differences(runs.state(ours.model), runs.state(plain.model)) == []
    teachers = [runs.state(runs.hook(each).distiller.teacher) for each in (ours, plain)]
    assert runs.differences(*teachers) == []


@pytest.mark.parametrize('kind', sorted(set(DEVICE_ERRORS), key=str))
def test_an_error_of_the_device_is_not_blamed_on_the_model(
    kind: type[Exception], runs: Runs
) -> None:
    cfg = config(runs, 'retinanet', EMA, iters=4)
    runner = runs.build(cfg)

    def before(runner: Runner) -> None:
        if runner.iter == 2 and not failures:
            neck = runs.hook(runner).distiller.teacher.neck
            failures.append(neck)

            def forward(*_: Any) -> None:
                del vars(neck)['forward']
                raise kind('the device failed')

            vars(neck)['forward'] = forward

    failures: list[Any] = []
    hook = Hook()
    hook.before_train_iter = lambda runner, **_: before(runner)
    runner.register_hook(hook, 'LOWEST')
    with pytest.raises(kind, match='the device failed'):
        runner.train()
    assert said(runner) == STAGE


def test_each_generation_proves_it(runs: Runs) -> None:
    stem = Stem(runs)

    def before(runner: Runner) -> None:
        if runs.hook(runner).distiller.teacher is not None:
            stem.before(runner)

    cfg = config(runs, 'retinanet', GENERATIONS, iters=9)
    runner = runs.train(cfg, before, stem.after)
    assert stem.counts == [0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert said(runner) == STAGE


def test_fresh_weights_are_not_those_of_the_teacher(runs: Runs) -> None:
    hook = {**GENERATIONS, 'student': 'reinit'}
    lines: list[str] = []
    runs.train(
        config(runs, 'retinanet', hook, iters=5),
        after=lambda runner: lines.append(said(runner)),
    )
    # tried in the first iteration with a copy, then of no use without a teacher
    assert lines[3:] == [TWICE, TWICE]


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_resumed_bitwise(runs: Runs) -> None:
    compare(runs, lambda: config(runs, 'retinanet', GENERATIONS, iters=7), [3, 4])


def test_after_a_validation_it_is_proven_again(runs: Runs) -> None:
    stem = Stem(runs)
    hook = dict(EMA, terms=dict(features=None))
    cfg = runs.config('deeplabv3plus', hook, iters=4, val_interval=2)
    cfg.model.backbone.update(frozen_stages=1, norm_eval=True)
    # it swaps the weights for a validation
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    lines: list[str] = []

    def after(runner: Runner) -> None:
        stem.after(runner)
        lines.append(said(runner))

    runs.train(cfg, stem.before, after)
    assert stem.counts == [1, 0, 1, 0]
    assert lines == [f'{ONCE}backbone.stem, backbone.layer1.'] * 4


@pytest.mark.parametrize('view', [None, dict(brightness=0.5)])
def test_images_without_labels(
    view: Any, runs: Runs, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scenes / 'train2017', tmp_path / 'images')
    unlabeled = dict(data=str(tmp_path / 'images'), view=view)

    def run() -> Runner:
        cfg = config(runs, 'faster_rcnn', dict(EMA, unlabeled=unlabeled), iters=3)
        return runs.train(cfg)

    ours = run()
    assert said(ours) == STAGE
    other = said(ours, unlabeled=True)
    assert (other == STAGE) is (view is None)
    lines = describe(runs.hook(ours).distiller).splitlines()
    # said once where it is the same
    assert lines.count(STAGE) == 1
    assert lines.count(f'Without labels: {other}') == (view is not None)
    monkeypatch.setattr(reuse, 'frozen_modules', lambda student: {})
    assert runs.differences(runs.state(ours.model), runs.state(run().model)) == []
