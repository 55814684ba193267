"""A config's schedule, stretched to another length."""

from __future__ import annotations

import copy
from typing import Any, Mapping

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF

from mmselfdistill.names import name_of
from mmselfdistill.zoo import hooks_of

# positions and lengths of MMEngine's schedulers, and of hooks that act at a position
POSITIONS = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
LISTS = ('milestones', 'periods')
HOOK_POSITIONS = (
    'switch_epoch',
    'num_last_epochs',
    'begin_epoch',
    'begin_iter',
    'save_begin',
)
ACTIONS = ('action_epoch', 'action_iter')
# MMEngine's loops validate so often if they are not asked otherwise
INTERVALS = dict(EpochBasedTrainLoop=1, IterBasedTrainLoop=1000)


def counts_epochs(train_cfg: Mapping[str, Any]) -> bool:
    """Return whether a training loop counts epochs."""
    return loop_of(train_cfg) != 'IterBasedTrainLoop'


def loop_of(train_cfg: Mapping[str, Any]) -> str:
    """Return the name of a training loop, without its package."""
    counts = train_cfg.get('by_epoch', True)
    default = 'EpochBasedTrainLoop' if counts else 'IterBasedTrainLoop'
    return name_of(train_cfg.get('type', default))


def length_of(cfg: Config) -> tuple[int, str]:
    """Return the length of a config's run, and its unit: 'epochs' or 'iterations'.

    Raises:
        ValueError: If its training loop says no length.
    """
    train_cfg = cfg.get('train_cfg') or {}
    epochs = counts_epochs(train_cfg)
    key = 'max_epochs' if epochs else 'max_iters'
    if not isinstance(train_cfg.get(key), int):
        raise ValueError(f'train_cfg: expected {key} in it, but got {dict(train_cfg)}')
    return train_cfg[key], 'epochs' if epochs else 'iterations'


def stretched(cfg: Config, length: int) -> Config:
    """Return the config of a run of another length.

    With ``f`` the new length over the old, every position of the learning rate's and
    other parameters' schedulers, of validation, and of hooks that act once, is
    ``round(f * position)``: warm-up and decay take the same share of the run.

    Args:
        cfg (Config): The config. It stays as it is.
        length (int): Of the new run, in the unit that its loop counts.
    """
    old, unit = length_of(cfg)
    factor = length / old
    found = copy.deepcopy(cfg)
    found.train_cfg.update(_loop(cfg.train_cfg, factor))
    found.train_cfg['max_epochs' if unit == 'epochs' else 'max_iters'] = length
    if cfg.get('param_scheduler'):
        found.param_scheduler = _schedulers(cfg.param_scheduler, factor)
    for hook in hooks_of(found):
        hook.update(_moved(hook, HOOK_POSITIONS, factor))
        if isinstance(hook.get('schedule'), (list, tuple)):
            # MMPretrain's SwitchRecipeHook
            hook['schedule'] = [
                _moved(each, ACTIONS, factor) for each in hook['schedule']
            ]
    return found


def _loop(train_cfg: Mapping[str, Any], factor: float) -> dict[str, Any]:
    name = loop_of(train_cfg)
    before = dict(train_cfg)
    if name in INTERVALS:
        before.setdefault('val_interval', INTERVALS[name])
    settings: dict[str, Any] = {
        key: max(1, round(before[key] * factor))
        for key in ('val_interval', 'val_begin')
        if key in before
    }
    if train_cfg.get('dynamic_intervals'):
        settings['dynamic_intervals'] = [
            (round(begin * factor), max(1, round(interval * factor)))
            for begin, interval in train_cfg['dynamic_intervals']
        ]
    return settings


def _schedulers(given: Any, factor: float) -> Any:
    if isinstance(given, (list, tuple)):
        return [_schedulers(each, factor) for each in given]
    if 'type' not in given:
        # one for each of several optimizers
        return {name: _schedulers(each, factor) for name, each in given.items()}
    moved = _moved(given, POSITIONS, factor)
    for key in LISTS:
        if key in moved:
            moved[key] = [round(each * factor) for each in moved[key]]
    name = name_of(given['type'])
    if name.startswith('Exponential') and 'gamma' in moved:
        # multiplied in each step: as far down in more of them
        moved['gamma'] = moved['gamma'] ** (1 / factor)
    if name.startswith('Step') and 'step_size' in moved:
        # a step of few epochs cannot be as much longer: as far down over all
        moved['step_size'] = max(1, moved['step_size'])
        longer = moved['step_size'] / given['step_size']
        moved['gamma'] = moved.get('gamma', 0.1) ** (longer / factor)
    return moved


def _moved(
    given: Mapping[str, Any], keys: tuple[str, ...], factor: float
) -> dict[str, Any]:
    moved = dict(given)
    for key in keys:
        value = moved.get(key)
        # `end` may be MMEngine's infinity
        if isinstance(value, (int, float)) and value < INF:
            moved[key] = round(value * factor)
    return moved
