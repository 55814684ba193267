"""The plain runs that a distilled one is compared with, as configs."""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmselfdistill.commands.cost import measured_cost, schedules_of, times_as_long
from mmselfdistill.commands.stretch import length_of, stretched
from mmselfdistill.errors import check_number
from mmselfdistill.hooks import DistillVisualizationHook, GenerationHook
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.hooks.validation import PREFIX
from mmselfdistill.names import name_of
from mmselfdistill.zoo import (
    find_config,
    find_self_distill,
    hooks_of,
    pop_hooks,
    pop_self_distill,
    read_file,
)

HEADER = '# Written by `mmselfdistill control`.'
# settings that name a metric
WATCHED = ('save_best', 'monitor')


class Control(NamedTuple):
    """A config to write."""

    name: str  # what the name of its file ends with
    what: str
    settings: dict[str, Any]


def controls(cfg: Config, cost: float) -> list[Control]:
    """Return the plain runs that a distilled one has to beat.

    ==================  ===========================================================
    ``plain``           without the hook, its schedule stretched: the same time
    ``plain-views``     the same, and the student sees the hook's ``view``
    ``plain-restarts``  as many repeats of the schedule as there are generations,
                        with the same restarts: the same iterations
    ==================  ===========================================================

    The last two keep the hook with ``loss_weight=0``, so that no teacher is run. They
    are there if the hook has a ``view``, and if it is a ``GenerationHook`` with
    ``generations``.

    Args:
        cfg (Config): Of the distilled run.
        cost (float): An iteration with the teacher, in iterations without it.

    Raises:
        ValueError: If the config has no hook of ours, or the length of its run is not
            known.
    """
    hook = hook_of(cfg)
    old, unit = length_of(cfg)
    schedules = schedules_of(cfg, hook)
    if not schedules:
        raise ValueError(
            "the config's terms all have weight=0: they distil nothing, and it is a "
            'control itself'
        )
    times = times_as_long(hook, schedules, old, cost)
    length = round(old * times)
    # a model of a student and a teacher may have metrics of that name itself
    same = cfg if hook.validate == 'student' else of_student(cfg)
    longer = stretched(same, length)
    plain = copy.deepcopy(longer)
    pop_self_distill(plain)
    _pop_pictures(plain)
    text = (
        f'{length} {unit}, {times:.3f} times {old}; an iteration with a teacher takes '
        f'{cost:.3f} plain ones'
    )
    found = [Control('plain', f'As long: {text}', difference(cfg, plain))]
    off: dict[str, Any] = dict(loss_weight=0.0, task_weight=None, validate='student')
    if hook.unlabeled is not None:
        off['unlabeled'] = dict(weight=0.0)
    generations = getattr(hook, 'generations', None)
    if hook.view is not None:
        # a boundary of generations is no part of a plain run
        once: dict[str, Any] = dict(generations=1) if generations else {}
        if isinstance(hook, GenerationHook):
            once['student'] = 'continue'
        views = difference(cfg, with_hook(longer, {**off, **once}))
        found.append(Control('plain-views', f'As long, same views: {text}', views))
    if generations:
        what = f'As many iterations, same restarts: {generations} x {old} {unit}'
        restarts = difference(cfg, with_hook(same, off))
        found.append(Control('plain-restarts', what, restarts))
    return found


def hook_of(cfg: Config) -> DistillHook:
    """Return the hook of a distilled config.

    Raises:
        ValueError: If there is none, or it compares nothing, or it counts in another
            unit than the config's loop.
    """
    settings = find_self_distill(cfg)
    if settings is None:
        raise ValueError(
            'the config has no hook of mmselfdistill, neither in default_hooks nor in '
            'custom_hooks: there is no distilled run to write a control of. If a flag '
            'has added the hook, give the config that the run has written to its work '
            'dir'
        )
    hook: Any = HOOKS.build(settings)
    if hook.loss_weight == 0:
        raise ValueError(
            "the config's hook has loss_weight=0: it distils nothing, and is a control "
            'itself'
        )
    _, unit = length_of(cfg)
    counted = isinstance(hook, GenerationHook) and hook.generations is None
    if counted and hook.by_epoch != (unit == 'epochs'):
        raise ValueError(
            f"the config's loop counts {unit}, but its hook's interval "
            f'({hook.interval}) does not (by_epoch={hook.by_epoch}): give it in {unit}'
        )
    return hook


def with_hook(cfg: Config, values: dict[str, Any]) -> Config:
    """Return a config in which some values of our hook are others."""
    found = copy.deepcopy(cfg)
    hook = find_self_distill(found)
    assert hook is not None
    hook.update(values)
    return found


def _pop_pictures(cfg: Config) -> None:
    """Take the pictures of student and teacher out of a config: there is no teacher."""
    name = DistillVisualizationHook.__name__
    pop_hooks(cfg, [hook for hook in hooks_of(cfg) if name_of(hook['type']) == name])


def of_student(cfg: Config) -> Config:
    """Return a config in which every metric to watch is the student's.

    A plain run logs no ``teacher/...``, which a checkpoint, a scheduler or a hook that
    stops early may watch.
    """
    found = copy.deepcopy(cfg)
    for key in ('default_hooks', 'custom_hooks', 'param_scheduler'):
        if cfg.get(key):
            found[key] = _watching_the_student(cfg[key])
    return found


def _watching_the_student(settings: Any) -> Any:
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(_watching_the_student, settings))
    if not isinstance(settings, dict):
        return settings
    found = {key: _watching_the_student(value) for key, value in settings.items()}
    for key in WATCHED:
        if isinstance(found.get(key), str):
            found[key] = found[key].replace(PREFIX, '')
        elif isinstance(found.get(key), (list, tuple)):
            found[key] = [name.replace(PREFIX, '') for name in found[key]]
    return found


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make one config of another, where it inherits that."""
    found: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if key in old and value == before:
            continue
        if isinstance(value, dict) and key in old:
            if isinstance(before, dict) and before.keys() <= value.keys():
                value = difference(before, value)
            else:
                # MMEngine adds settings to a dict, and takes none out
                value = dict(_delete_=True, **value)
        found[key] = value
    return found


def base_of(config: Path, folder: Path) -> str:
    """Return the path by which a config in `folder` inherits `config`.

    It is relative, so that both can be moved. MMEngine reads ``link/..`` as the folder
    that holds the link: where a symbolic link is between them, the path is absolute.
    """
    base = os.path.relpath(config, folder)
    real = os.path.relpath(config.resolve(), folder.resolve())
    return base if base == real else os.path.abspath(config)


def write_controls(config: Path, cost: float, folder: Path) -> dict[Path, str]:
    """Write the controls of a distilled config, each as a config that inherits it.

    Args:
        config (Path): Of the distilled run.
        cost (float): An iteration with the teacher, in iterations without it.
        folder (Path): Where they are written.

    Returns:
        dict[Path, str]: The files, and what each is.

    Raises:
        ValueError: If there is nothing to control, the config is one that cannot be
            inherited, or a file is there that this command has not written.
    """
    if Config._is_lazy_import(str(config)):
        raise ValueError(
            f'{config}: is written in pure Python (read_base), which `_base_` cannot '
            'inherit; write the run as a text config'
        )
    check_number('--cost', cost, 1.0)
    if folder.is_file():
        raise ValueError(f'--out-dir: {folder} is a file')
    cfg = read_file(config)
    base = base_of(config, folder)
    texts: dict[Path, tuple[str, str]] = {}
    for name, what, settings in controls(cfg, cost):
        path = folder / f'{config.stem}_{name}.py'
        if path.exists() and not path.read_text().startswith(HEADER):
            raise ValueError(f'{path}: exists, and was not written by this command')
        if cfg.get('resume') or _is_own(cfg):
            # that checkpoint is of the distilled run
            settings.update(resume=False, load_from=None)
        else:
            # a test of the run writes another one over its config
            settings['load_from'] = cfg.get('load_from')
        if cfg.get('work_dir'):
            settings['work_dir'] = f'{cfg.work_dir.rstrip("/")}_{name}'
        comment = f'{HEADER}\n# {what}\n'
        body = Config(settings).pretty_text
        texts[path] = (f'{comment}_base_ = {base!r}\n{body}', what)
    folder.mkdir(parents=True, exist_ok=True)
    for path, (text, _) in texts.items():
        path.write_text(text)
    return {path: what for path, (_, what) in texts.items()}


def _is_own(cfg: Config) -> bool:
    """Say whether a run would begin with a checkpoint of its own, as after a test."""
    if not (cfg.get('load_from') and cfg.get('work_dir')):
        return False
    start = os.path.realpath(cfg.load_from)
    return start.startswith(os.path.join(os.path.realpath(cfg.work_dir), ''))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='of the distilled run')
    parser.add_argument(
        '--cost',
        type=float,
        help='an iteration with the teacher, in iterations without it: the ratio of '
        '`time` in the log, after the teacher has begun to before (with every=k: 1 + k '
        'times what it is above 1). Defaults to what is measured now, on noise',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        help='where the configs are written. Defaults to the folder of the config, or '
        'to this one if the config is named in a zoo',
    )


def run(args: argparse.Namespace) -> None:
    """Write the controls of the config of the command line."""
    path = find_config(args.config)
    cost = args.cost
    if cost is None:
        cfg = read_file(path)
        hook_of(cfg)
        cost = measured_cost(cfg)
        print(f'An iteration with the teacher takes {cost:.3f} plain ones.')
    folder = args.out_dir or (Path() if '::' in args.config else path.parent)
    for written, what in write_controls(path, cost, folder).items():
        print(f'{written}\n  {what}')
