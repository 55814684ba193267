"""The plain runs that a distilled one is compared with, as configs."""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmselfdistill.commands.cost import measured_cost, times_as_long
from mmselfdistill.commands.stretch import length_of, stretched
from mmselfdistill.errors import check_number
from mmselfdistill.hooks import GenerationHook
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.hooks.validation import PREFIX
from mmselfdistill.zoo import find_config, find_self_distill, pop_self_distill

HEADER = '# Written by `mmselfdistill control`.'


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
    times = times_as_long(hook, old, cost)
    length = round(old * times)
    longer = stretched(cfg, length)
    text = (
        f'{length} {unit}, {times:.3f} times {old}; an iteration with a teacher takes '
        f'{cost:.3f} plain ones'
    )
    found = [
        Control('plain', f'As long: {text}', {**longer, **without_hook(cfg, longer)})
    ]
    off: dict[str, Any] = dict(loss_weight=0.0, task_weight=None, validate='student')
    if hook.unlabeled is not None:
        off['unlabeled'] = dict(weight=0.0)
    generations = getattr(hook, 'generations', None)
    if hook.view is not None:
        # a boundary of generations is no part of a plain run
        once: dict[str, Any] = dict(generations=1) if generations else {}
        if isinstance(hook, GenerationHook):
            once['student'] = 'continue'
        views = {**longer, **with_hook(cfg, {**off, **once}, longer)}
        found.append(Control('plain-views', f'As long, same views: {text}', views))
    if generations:
        what = f'As many iterations, same restarts: {generations} x {old} {unit}'
        found.append(Control('plain-restarts', what, with_hook(cfg, off, {})))
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


def without_hook(cfg: Config, changed: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that take our hook out of a config that inherits it."""
    rest = copy.deepcopy(cfg)
    pop_self_distill(rest)
    settings: dict[str, Any] = {}
    default = of_student(dict(rest.get('default_hooks') or {}))
    if default != dict(cfg.get('default_hooks') or {}):
        # MMEngine takes no hook of another name out by None
        settings['default_hooks'] = dict(_delete_=True, **default)
    custom = list(rest.get('custom_hooks') or [])
    if len(custom) != len(cfg.get('custom_hooks') or []):
        moved = changed.get('custom_hooks')
        ours = [hook for hook in cfg.custom_hooks if hook not in custom]
        settings['custom_hooks'] = [
            new
            for new, old in zip(moved or cfg.custom_hooks, cfg.custom_hooks)
            if old not in ours
        ]
    return settings


def with_hook(
    cfg: Config, values: dict[str, Any], changed: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that give our hook some other values."""
    rest = copy.deepcopy(cfg)
    pop_self_distill(rest)
    before, after = cfg.get('default_hooks') or {}, rest.get('default_hooks') or {}
    keys = [key for key in before if key not in after]
    default: dict[str, Any] = dict.fromkeys(keys, values)
    student = of_student(dict(after))
    default.update({k: v for k, v in student.items() if v != after[k]})
    settings: dict[str, Any] = dict(default_hooks=default) if default else {}
    if not keys:
        plain = list(rest.get('custom_hooks') or [])
        hooks = changed.get('custom_hooks') or list(cfg.custom_hooks)
        settings['custom_hooks'] = [
            new if old in plain else {**new, **values}
            for new, old in zip(hooks, cfg.custom_hooks)
        ]
    return settings


def of_student(default_hooks: dict[str, Any]) -> dict[str, Any]:
    """Let the best checkpoint be chosen by the student's metric: there is no other."""
    saving = default_hooks.get('checkpoint') or {}
    best = saving.get('save_best')
    if not best or PREFIX not in str(best):
        return default_hooks
    names = [best] if isinstance(best, str) else best
    bare = [name.replace(PREFIX, '') for name in names]
    kept = bare[0] if isinstance(best, str) else bare
    return {**default_hooks, 'checkpoint': {**saving, 'save_best': kept}}


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
    cfg = Config.fromfile(config)
    base = os.path.relpath(config.resolve(), folder.resolve())
    texts: dict[Path, tuple[str, str]] = {}
    for name, what, settings in controls(cfg, cost):
        path = folder / f'{config.stem}_{name}.py'
        if path.exists() and not path.read_text().startswith(HEADER):
            raise ValueError(f'{path}: exists, and was not written by this command')
        if cfg.get('resume'):
            # that checkpoint is of the distilled run
            settings.update(resume=False, load_from=None)
        if cfg.get('work_dir'):
            settings['work_dir'] = f'{cfg.work_dir}_{name}'
        comment = f'{HEADER}\n# {what}\n'
        body = Config(settings).pretty_text
        texts[path] = (f'{comment}_base_ = {base!r}\n{body}', what)
    folder.mkdir(parents=True, exist_ok=True)
    for path, (text, _) in texts.items():
        path.write_text(text)
    return {path: what for path, (_, what) in texts.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='of the distilled run')
    parser.add_argument(
        '--cost',
        type=float,
        help='an iteration with the teacher, in iterations without it: the ratio of '
        '`time` in the log, after the teacher has begun to before. Defaults to what is '
        'measured now, on noise',
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
        cfg = Config.fromfile(path)
        hook_of(cfg)
        cost = measured_cost(cfg)
        print(f'An iteration with the teacher takes {cost:.3f} plain ones.')
    folder = args.out_dir or (Path() if '::' in args.config else path.parent)
    for written, what in write_controls(path, cost, folder).items():
        print(f'{written}\n  {what}')
