"""How long a plain run takes that lasts as long as a distilled one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmselfdistill import EMATeacherHook, GenerationHook
from mmselfdistill.commands.cost import (
    measured_cost,
    schedules_of,
    teachers_share,
    times_as_long,
)

CONSTANT = dict(schedule='constant')
PATH = (
    Path(__file__).parents[2]
    / 'configs/digits/deeplabv3plus_r18-d8_1xb8-ema-1500_digits-64x64.py'
)


@pytest.mark.parametrize(
    ('hook', 'share', 'times'),
    [
        # 2 x 12 epochs, the second half with a teacher: 12 + 12 x 1.5
        (GenerationHook(generations=2), 0.5, 2.5),
        (GenerationHook(generations=3, **CONSTANT), 2 / 3, 4.0),
        # 12 epochs, the last 8 of them
        (GenerationHook(interval=4, **CONSTANT), 2 / 3, 1 + 0.5 * 2 / 3),
        # in the second half of the run
        (EMATeacherHook(), 0.5, 1.25),
        (EMATeacherHook(schedule=dict(type='constant', begin=0.15)), 0.85, 1.425),
        (EMATeacherHook(schedule=dict(type='constant', end=0.25)), 0.25, 1.125),
        # in one of two iterations of that half
        (EMATeacherHook(every=2), 0.25, 1.125),
    ],
)
def test_time_of_a_distilled_run(hook: Any, share: float, times: float) -> None:
    schedules = schedules_of(Config(), hook)
    assert teachers_share(hook, schedules, 12) == pytest.approx(share, abs=2e-3)
    assert times_as_long(hook, schedules, 12, 1.5) == pytest.approx(times, abs=2e-3)
    generations = getattr(hook, 'generations', None) or 1
    assert times_as_long(hook, schedules, 12, 1.0) == generations


def share_of(**terms: Any) -> float:
    """Return the share of the teacher's iterations, of a hook that begins at half."""
    settings: dict[str, Any] = dict(
        type='mmselfdistill.EMATeacherHook', schedule=dict(begin=0.5), terms=terms
    )
    cfg = Config.fromfile(PATH)
    cfg.default_hooks.self_distill = settings
    hook: Any = HOOKS.build(settings)
    return teachers_share(hook, schedules_of(cfg, hook), 12)


@pytest.mark.parametrize(
    ('terms', 'share'),
    [
        (dict(logits=dict(schedule=dict(begin=0.9))), 0.5),
        (dict(logits=dict(schedule=dict(end=0.2))), 0.7),
        # no schedule is a constant 1, and not the hook's
        (dict(logits=dict(schedule=None)), 1.0),
        (dict(features=None, logits=dict(schedule=dict(begin=0.8))), 0.2),
        # a weight of 0 asks for no teacher
        (dict(logits=dict(weight=0, schedule='constant')), 0.5),
        (dict(features=dict(weight=0), logits=dict(weight=0)), 0.0),
    ],
)
def test_a_terms_own_schedule_counts(terms: dict[str, Any], share: float) -> None:
    assert share_of(**terms) == pytest.approx(share, abs=2e-3)


def test_a_schedule_over_the_run() -> None:
    # of the whole run, in which the second of two generations has a teacher
    over_run = dict(type='constant', begin=0.75, over='run')
    hook = GenerationHook(generations=2, schedule=over_run)
    found = teachers_share(hook, schedules_of(Config(), hook), 12)
    assert found == pytest.approx(0.25, abs=2e-3)


def test_the_measured_cost_is_that_of_one_more_forward() -> None:
    cfg = Config.fromfile(PATH)
    # whenever the teacher is run
    cfg.default_hooks.self_distill.schedule = dict(begin=0.8)
    # a forward is a third of a step; a loaded machine may be far off
    assert 1.0 < measured_cost(cfg) < 2.5
