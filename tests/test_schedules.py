import math

import numpy as np
import pytest
from mmengine.config import ConfigDict

from mmselfdistill.schedules import Schedule, build_schedule


def build(**cfg):
    return build_schedule(cfg, 'terms.a.schedule')


def test_default_is_a_constant_one():
    for cfg in (None, 'constant', {}):
        schedule = build_schedule(cfg, 'schedule')
        assert schedule == Schedule()
        assert [schedule(p) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_string_and_config_dict():
    assert build_schedule('cosine', 'schedule') == Schedule(type='cosine')
    cfg = ConfigDict(type='step', milestones=[0.5, 0.8], gamma=0.5)
    expected = Schedule(type='step', milestones=(0.5, 0.8), gamma=0.5)
    assert build_schedule(cfg, 'schedule') == expected


@pytest.mark.parametrize('start', [1.0, 0.0, 0.3])
@pytest.mark.parametrize('stop', [0.01, 0.0, 2.0])
@pytest.mark.parametrize(('begin', 'warmup', 'end'), [(0, 0, 1), (0.1, 0.2, 0.7)])
def test_linear_and_cosine_against_interpolation(start, stop, begin, warmup, end):
    keys = {'begin': begin, 'warmup': warmup, 'end': end, 'start': start, 'stop': stop}
    linear, cosine = build(type='linear', **keys), build(type='cosine', **keys)
    points = np.linspace(begin, end, 23)
    ramp = np.interp(points, [begin, begin + warmup], [0, 1]) if warmup else 1.0
    done = np.interp(points, [begin + warmup, end], [0, 1])
    decayed = start + (stop - start) * done
    np.testing.assert_allclose([linear(p) for p in points], ramp * decayed, atol=1e-12)
    decayed = stop + (start - stop) * np.cos(np.pi * done / 2) ** 2
    np.testing.assert_allclose([cosine(p) for p in points], ramp * decayed, atol=1e-12)


@pytest.mark.parametrize('kind', ['linear', 'cosine'])
def test_ends_are_exact(kind):
    schedule = build(type=kind, start=0.7, stop=0.01)
    assert schedule(0.0) == 0.7
    assert schedule(1.0) == 0.01
    assert build(type=kind, stop=0)(1.0) == 0.0


def test_step_multiplies_at_each_milestone():
    schedule = build(type='step', milestones=[0.5, 0.25], gamma=0.5)
    assert [schedule(p) for p in (0, 0.24, 0.25, 0.49, 0.5, 1)] == [
        1.0, 1.0, 0.5, 0.5, 0.25, 0.25,
    ]  # fmt: skip


def test_outside_begin_and_end_the_factor_is_zero():
    schedule = build(begin=0.25, end=0.75)
    points = (0.0, 0.24, 0.25, 0.5, 0.75, 0.76, 1.0)
    assert [schedule(p) for p in points] == [0, 0, 1, 1, 1, 0, 0]


def test_warmup_ramps_from_zero():
    schedule = build(begin=0.5, warmup=0.25)
    points = (0.5, 0.5625, 0.625, 0.75, 1.0)
    assert [schedule(p) for p in points] == [0, 0.25, 0.5, 1, 1]
    assert build(warmup=1.0)(0.5) == 0.5


def test_warmup_may_fill_all_of_a_decay():
    schedule = build(type='cosine', begin=0.1, warmup=0.2, end=0.3, start=0.8)
    assert schedule(0.2) == pytest.approx(0.4)
    assert schedule(0.3) == pytest.approx(0.8)


def test_progress_is_clamped_to_the_run():
    schedule = build(type='linear')
    assert schedule(1.0 + 1e-9) == schedule(1.0) == 0.01
    assert schedule(-1e-9) == schedule(0.0) == 1.0


def test_schedule_is_frozen():
    with pytest.raises(AttributeError):
        Schedule().begin = 0.5


BAD = [
    (
        {'type': 'cosin'},
        r"\.type: unknown 'cosin'; did you mean 'cosine'\? Valid: 'con",
    ),
    ({'type': None}, r'\.type: unknown None; valid: '),
    ({'warmpu': 0.1}, r"unknown 'warmpu'; did you mean 'warmup'\?"),
    ({'begin': -0.1}, r'\.begin: expected a number in \[0, 1\], but got -0\.1'),
    ({'end': 1.5}, r'\.end: expected a number in \[0, 1\], but got 1\.5'),
    ({'warmup': '0.1'}, r"\.warmup: expected a number in \[0, 1\], but got '0\.1'"),
    ({'type': 'linear', 'stop': -1}, r'\.stop: expected a number >= 0, but got -1'),
    ({'type': 'linear', 'start': math.nan}, r'\.start: .* but got nan'),
    ({'type': 'step', 'milestones': [2]}, r'\.milestones: .*\[0, 1\], but got 2'),
    (
        {'type': 'step', 'milestones': 0.5},
        r'\.milestones: expected a list, but got 0\.5',
    ),
    ({'type': 'step'}, r"\.milestones: type 'step' needs at least one"),
    ({'stop': 0.1}, r"\.stop: given 0\.1, but type 'constant' .*'linear' or 'cosine'"),
    (
        {'begin': 0.5, 'end': 0.5},
        r'expected begin < end, but got begin=0\.5 and end=0\.5',
    ),
    ({'begin': 0.5, 'warmup': 0.6}, r'expected begin \+ warmup <= end, .*warmup=0\.6'),
]


@pytest.mark.parametrize(('cfg', 'message'), BAD)
def test_bad_settings_are_named(cfg, message):
    with pytest.raises(ValueError, match=r'^terms\.a\.schedule.*' + message):
        build_schedule(cfg, 'terms.a.schedule')


def test_a_schedule_that_is_no_dict():
    with pytest.raises(
        ValueError, match=r'^schedule: expected a dict, .*, but got 0\.5'
    ):
        build_schedule(0.5, 'schedule')


def test_it_is_written_with_what_is_not_the_default():
    assert str(build(type='cosine', begin=0.0, stop=0.01)) == 'cosine'
    assert str(build(begin=0.3, warmup=0.2)) == 'constant, begin=0.3, warmup=0.2'
    step = build(type='step', milestones=[0.5], over='run')
    assert str(step) == 'step, milestones=(0.5,), over=run'
