"""How long a plain run takes that lasts as long as a distilled one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmselfdistill import EMATeacherHook, GenerationHook
from mmselfdistill.commands.cost import measured_cost, teachers_share, times_as_long

CONSTANT = dict(schedule='constant')


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
    assert teachers_share(hook, 12) == pytest.approx(share, abs=2e-3)
    assert times_as_long(hook, 12, 1.5) == pytest.approx(times, abs=2e-3)
    generations = getattr(hook, 'generations', None) or 1
    assert times_as_long(hook, 12, 1.0) == generations


def test_a_terms_own_schedule_counts() -> None:
    late = dict(type='constant', begin=0.9)
    early = dict(logits=dict(schedule=dict(type='constant', end=0.2)))
    hook = EMATeacherHook(schedule=late, terms=early)
    assert teachers_share(hook, 12) == pytest.approx(0.3, abs=2e-3)
    # of the whole run, in which the second of two generations has a teacher
    over_run = dict(type='constant', begin=0.75, over='run')
    hook = GenerationHook(generations=2, schedule=over_run)
    assert teachers_share(hook, 12) == pytest.approx(0.25, abs=2e-3)


def test_the_measured_cost_is_that_of_one_more_forward() -> None:
    root = Path(__file__).parents[2]
    path = root / 'configs/digits/deeplabv3plus_r18-d8_1xb8-ema-1500_digits-64x64.py'
    # a forward is a third of a step; a loaded machine may be far off
    assert 1.0 < measured_cost(Config.fromfile(path), rounds=2) < 2.5
