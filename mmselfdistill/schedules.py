"""Weight over time, as a pure function of progress: there is no state to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Mapping

from mmselfdistill.errors import check_choice, check_number

_SHARED_KEYS = ('type', 'begin', 'end', 'warmup', 'over')
_OVER = ('generation', 'run')
_KEYS = {
    'constant': _SHARED_KEYS,
    'linear': (*_SHARED_KEYS, 'start', 'stop'),
    'cosine': (*_SHARED_KEYS, 'start', 'stop'),
    'step': (*_SHARED_KEYS, 'milestones', 'gamma'),
}


@dataclass(frozen=True)
class Schedule:
    r"""The factor on a term's weight, as a function of progress in [0, 1].

    With progress :math:`p`, the ramp :math:`r = \min(1, (p - begin) / warmup)`
    and :math:`u` running from 0 at ``begin + warmup`` to 1 at ``end``, the
    factor is 0 outside [begin, end] and inside it

    ========  ==========================================================
    constant  :math:`r`
    linear    :math:`r (start + (stop - start) u)`
    cosine    :math:`r (stop + (start - stop) (1 + \cos \pi u) / 2)`
    step      :math:`r \, gamma^k`, `k` the number of milestones at or
              before `p`
    ========  ==========================================================

    Use :func:`build_schedule` to make one from a config: it checks the values.

    Args:
        type (str): 'constant', 'linear', 'cosine' or 'step'. Defaults to
            'constant'.
        begin (float): Progress at which the term sets in, in [0, 1]. Defaults to 0.0.
        end (float): Progress after which the term is off, in [0, 1]. Defaults to 1.0.
        warmup (float): Part of the progress, from ``begin`` on, during which
            the factor ramps up linearly from 0; it ends at ``end`` or before. Defaults
            to 0.0.
        start (float): Factor after the warm-up (linear, cosine), at least 0. Defaults
            to 1.0.
        stop (float): Factor at ``end`` (linear, cosine), unless the warm-up fills all
            of it, at least 0. Defaults to 0.01.
        milestones (tuple[float, ...]): Progress at which the factor is
            multiplied by ``gamma`` (step), in [0, 1]. Defaults to ().
        gamma (float): Factor of each milestone (step), at least 0. Defaults to 0.1.
        over (str): What the progress is measured over: each 'generation' of a run
            that has some, or the whole 'run'. Defaults to 'generation'.
    """

    type: str = 'constant'
    begin: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    start: float = 1.0
    stop: float = 0.01
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    over: str = 'generation'

    def __call__(self, progress: float) -> float:
        """Return the factor at a progress, which is clamped to [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        if not self.begin <= progress <= self.end:
            return 0.0
        elapsed = progress - self.begin
        ramp = min(elapsed / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return ramp * self._decay(progress)

    def __str__(self) -> str:
        """Return the type, and the settings that are not the default."""
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self)[1:]]
        changed = [
            f'{name}={value}' for name, value, default in given if value != default
        ]
        return ', '.join([self.type, *changed])

    def clamped(self, progress: float) -> float:
        """Return the factor where it does not end: of what is never off.

        Before ``begin`` it is that of the begin, and after ``end`` that of the end.
        """
        return self(min(max(progress, self.begin), self.end))

    def _decay(self, progress: float) -> float:
        if self.type == 'step':
            return self.gamma ** sum(m <= progress for m in self.milestones)
        if self.type == 'constant':
            return 1.0
        length = self.end - self.begin - self.warmup
        elapsed = max(progress - self.begin - self.warmup, 0.0)
        done = min(elapsed / length, 1.0) if length > 0 else 0.0
        if self.type == 'cosine':
            done = (1 - math.cos(math.pi * done)) / 2
        # each end is met exactly: 0 must be 0, since it turns the teacher off
        return self.start * (1 - done) + self.stop * done


def build_schedule(cfg: Mapping[str, Any] | str | None, where: str) -> Schedule:
    """Make a schedule of what a user wrote.

    Args:
        cfg (Mapping | str | None): The settings of :class:`Schedule`, only its
            type, or None for a constant 1.
        where (str): The setting's full name, for messages; such as
            ``'terms.logits.schedule'``.

    Returns:
        Schedule: The checked schedule.

    Raises:
        ValueError: If the type or a key is unknown, a key belongs to another
            type, or a value is not a number in its range.
    """
    if cfg is None:
        return Schedule()
    if isinstance(cfg, str):
        cfg = {'type': cfg}
    if not isinstance(cfg, Mapping):
        raise ValueError(
            f'{where}: expected a dict, a type such as "cosine", or None, '
            f'but got {cfg!r}'
        )
    kind = check_choice(f'{where}.type', cfg.get('type', 'constant'), _KEYS)
    _check_keys(cfg, kind, where)
    values: dict[str, Any] = {
        key: _check_value(f'{where}.{key}', key, value)
        for key, value in cfg.items()
        if key != 'type'
    }
    schedule = Schedule(type=kind, **values)
    _check_order(schedule, where)
    return schedule


def _check_keys(cfg: Mapping[str, Any], kind: str, where: str) -> None:
    every_key = {key for keys in _KEYS.values() for key in keys}
    for key in cfg:
        check_choice(where, key, every_key)
        if key not in _KEYS[kind]:
            kinds = ' or '.join(repr(k) for k, keys in _KEYS.items() if key in keys)
            raise ValueError(
                f'{where}.{key}: given {cfg[key]!r}, but type {kind!r} does not use '
                f'{key!r}; set type to {kinds}, or remove it (add _delete_=True if '
                'it is inherited)'
            )


def _check_value(setting: str, key: str, value: Any) -> float | str | tuple[float, ...]:
    if key == 'over':
        return check_choice(setting, value, _OVER)
    if key == 'milestones':
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'{setting}: expected a list, but got {value!r}')
        return tuple(check_number(setting, each, 0.0, 1.0) for each in value)
    highest = math.inf if key in ('start', 'stop', 'gamma') else 1.0
    return check_number(setting, value, 0.0, highest)


def _check_order(schedule: Schedule, where: str) -> None:
    begin, end, warmup = schedule.begin, schedule.end, schedule.warmup
    if begin >= end:
        raise ValueError(
            f'{where}: expected begin < end, but got begin={begin:g} and end={end:g}'
        )
    # 0.1 + 0.2 > 0.3 in floating point
    if begin + warmup > end + 1e-9:
        raise ValueError(
            f'{where}: expected begin + warmup <= end, but got begin={begin:g}, '
            f'warmup={warmup:g} and end={end:g}'
        )
    if schedule.type == 'step' and not schedule.milestones:
        raise ValueError(
            f"{where}.milestones: type 'step' needs at least one number in [0, 1], "
            'but got none'
        )
