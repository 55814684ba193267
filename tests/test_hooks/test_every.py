"""A teacher that is run in each k-th iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_resume import compare

import mmselfdistill

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', momentum=0.5, schedule='constant')


def values(runner: Runner, key: str) -> list[float]:
    return [float(v) for v in runner.message_hub.get_scalar(f'train/{key}').data[0]]


def test_the_teacher_runs_in_each_second_iteration_with_twice_the_weight(
    runs: Runs,
) -> None:
    counts: list[int] = []

    def after(runner: Runner) -> None:
        counts.append(runs.hook(runner).distiller.computed)

    terms = dict(logits=dict(weight=0.5))
    cfg = runs.config('gfl', dict(EMA, every=2, terms=terms), iters=5)
    runner = runs.train(cfg, after=after)
    assert counts == [1, 1, 2, 2, 3]
    assert values(runner, 'sd_logits_weight') == [1, 0, 1, 0, 1]
    losses = values(runner, 'loss_sd_logits')
    assert [value > 0 for value in losses] == [True, False, True, False, True]
    # the average is taken in every iteration
    assert runs.hook(runner).updates == 5


def test_iterations_are_counted_over_the_epochs(runs: Runs) -> None:
    seeds: list[tuple[int, int]] = []

    def before(runner: Runner) -> None:
        # what views draw by, too
        distiller = runs.hook(runner).distiller
        seeds.append((distiller.seed, distiller.iteration))

    hook = dict(EMA, every=2)
    runner = runs.train(runs.config('retinanet', hook, epochs=2), before)
    assert runs.steps_an_epoch == 3
    assert seeds == [(0, i) for i in range(6)]
    assert values(runner, 'sd_logits_weight') == [2, 0, 2, 0, 2, 0]


def test_the_first_of_two_iterations_is_one_of_twice_the_weight(runs: Runs) -> None:
    found = [
        runs.state(runs.train(runs.config('retinanet', {**EMA, **more}, iters=1)).model)
        for more in (dict(every=2), dict(loss_weight=2.0))
    ]
    assert runs.differences(*found) == []


def test_1_is_bitwise_the_default(runs: Runs) -> None:
    found = [
        runs.state(runs.train(runs.config('retinanet', {**EMA, **more}, iters=3)).model)
        for more in ({}, dict(every=1))
    ]
    assert runs.differences(*found) == []


@pytest.mark.usefixtures('stock_resumes_in_iterations')
@pytest.mark.parametrize(
    'hook',
    [
        dict(EMA, every=2),
        dict(type='mmselfdistill.GenerationHook', interval=3, by_epoch=False, every=2),
    ],
    ids=['ema', 'generation'],
)
def test_resumed_bitwise(hook: dict[str, Any], runs: Runs) -> None:
    compare(runs, lambda: runs.config('retinanet', hook, iters=7), [3, 4])


@pytest.mark.parametrize('wrong', [0, -1, 1.5, True, '2'])
def test_a_wrong_number_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r'^every: expected an integer >= 1, but got'):
        mmselfdistill.EMATeacherHook(every=wrong)
