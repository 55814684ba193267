"""The settings of the hooks, checked as far as they can be without a run."""

from __future__ import annotations

import inspect
import numbers
from typing import Any, Mapping, Sequence

import torch

from mmselfdistill.core.terms import ScheduleConfig
from mmselfdistill.errors import check_choice, check_number, nearest
from mmselfdistill.schedules import Schedule, build_schedule


def check_arguments(hook: type, base: type, unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that a hook does not have, and name those that it has.

    Args:
        hook (type): Its class.
        base (type): The class that has the arguments of all hooks.
        unknown (Mapping): The arguments that neither has.

    Raises:
        ValueError: If there is one.
    """
    signatures = [inspect.signature(each).parameters for each in (base, hook)]
    parameters = [p for each in signatures for p in each.values()]
    valid = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    # three kinds of teacher, each with arguments of its own
    kinds: list[type] = base.__subclasses__()
    owners = {
        p.name: kind.__name__
        for kind in kinds
        for p in inspect.signature(kind).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    }
    for name in unknown:
        hint = f'{owners[name]} has' if name in owners else nearest(name, valid)
        raise ValueError(f'{hook.__name__} has no argument {name!r}; {hint}')


def check_paths(seams: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of seams.

    Raises:
        ValueError: If it is no list of paths.
    """
    paths = seams if isinstance(seams, (list, tuple)) else [None]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f'seams: expected a list of paths, but got {seams!r}')
    return tuple(paths)


def build_task_weight(given: float | ScheduleConfig) -> Schedule | None:
    """Return the factor on the losses of the model itself, as a schedule over the run.

    Raises:
        ValueError: If it is neither a number nor a schedule.
    """
    if isinstance(given, (float, numbers.Real)):
        value = check_number('task_weight', given, 0.0)
        return Schedule('linear', start=value, stop=value)
    if isinstance(given, Mapping) and 'over' in given:
        raise ValueError('task_weight.over: it is over the run always; remove it')
    if isinstance(given, Mapping) and 'warmup' in given:
        raise ValueError(
            'task_weight.warmup: it grows from 0, and before `begin` the model would '
            'learn nothing from its labels; remove it'
        )
    schedule = None if given is None else build_schedule(given, 'task_weight')
    if schedule and schedule.type == 'constant':
        raise ValueError(
            f"task_weight: {given!r} is of the type 'constant', which is 1 all the "
            "time; give a number, or the type 'linear', 'cosine' or 'step'"
        )
    return schedule


def build_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype to which the teacher's calls are autocast.

    Raises:
        ValueError: If there is no autocast to it.
    """
    if name is None:
        return None
    dtypes = dict(float16=torch.float16, bfloat16=torch.bfloat16)
    return dtypes[check_choice('teacher_dtype', name, dtypes)]
