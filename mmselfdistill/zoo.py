"""Configs by their name in a zoo, and our hook in them."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import HOOKS
from mmengine.utils import get_installed_path, is_installed

import mmselfdistill.hooks  # also makes `mmseg::` resolve on either stack
from mmselfdistill.errors import check_choice
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.hooks.run import check_one
from mmselfdistill.names import name_of

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


def read_config(name: str, options: dict[str, Any] | None) -> Config:
    """Read a config given by path or by name in a zoo, with settings over its own.

    Raises:
        SystemExit: If there is no such config, or a setting goes into what is no dict.
        ValueError: If it cannot be read.
    """
    cfg = read_file(find_config(name))
    merge_options(cfg, options)
    return cfg


def read_file(path: Path, imports: bool = True) -> Config:
    """Read the file of a config.

    Args:
        path (Path): The file.
        imports (bool): Whether its ``custom_imports`` are imported. Defaults to True.

    Raises:
        ValueError: If it, or what it inherits or imports, cannot be read.
    """
    try:
        return Config.fromfile(path, import_custom_modules=imports)
    except Exception as error:
        # of what is no Python, MMEngine does not say in which file
        raise ValueError(
            f'config: {str(path)!r} cannot be read: {type(error).__name__}: {error}'
        ) from error


def merge_options(cfg: Config, options: dict[str, Any] | None) -> None:
    """Put the settings of ``--cfg-options`` over a config's own, in place.

    Raises:
        SystemExit: If one of them goes into what is no dict.
    """
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise SystemExit(f'--cfg-options: {error}') from error


def check_scope(cfg: Config) -> str:
    """Return the framework of a config.

    Raises:
        ValueError: If it is none that we know models of.
    """
    scope = scope_of(cfg)
    if scope not in SCOPES:
        raise ValueError(
            f'default_scope: expected one of {SCOPES} in the config, but got {scope!r}'
        )
    return scope


def scope_of(cfg: Config) -> str:
    """Return the package of a config's model, or '': new configs have no scope."""
    model = cfg.get('model')
    kind = model.get('type', '') if isinstance(model, dict) else ''
    module = kind if isinstance(kind, str) else str(kind.__module__)
    return cfg.get('default_scope') or module.partition('.')[0]


def find_config(name: str) -> Path:
    """Return the file of a config given by path or by name in a zoo.

    Args:
        name: `path/to/config.py`, or `<package>::<family>/<config>` with or
            without `.py`, where the package is one that MMEngine knows
            (`mmdet`, `mmseg`, ...) or `mmselfdistill`.

    Raises:
        SystemExit: There is no such config; the message lists the nearest ones.
    """
    at_path = '::' not in name
    if at_path:
        path = Path(name)
        root, written = path.parent, name
    else:
        package, _, relative = name.partition('::')
        root = zoo_folder(package)
        path = root / relative
        written = f'{package}::{relative}'
    if path.is_file():
        return path
    if path.name and path.suffix != '.py':  # '.' has no name
        path_py = path.with_name(f'{path.name}.py')
        if path_py.is_file():
            return path_py
    what = 'is a folder' if path.is_dir() else 'does not exist'
    raise SystemExit(f'config: {written!r} {what}. {_nearest(path, root, at_path)}')


def zoo_folder(package: str) -> Path:
    """Return the folder that holds the configs of a package."""
    if package == 'mmselfdistill':
        package_folder = Path(__file__).resolve().parent
        shipped = package_folder / '.mim' / 'configs'
        return shipped if shipped.is_dir() else package_folder.parent / 'configs'
    if package not in MODULE2PACKAGE:
        raise SystemExit(
            f'config: no package {package!r} with configs is known. '
            f'Known: {", ".join(sorted(MODULE2PACKAGE))}.'
        )
    distribution = MODULE2PACKAGE[package]
    if not is_installed(distribution):
        raise SystemExit(
            f'config: {package!r} is not installed, which a config named '
            f'{package}::... needs. Install it with `pip install {distribution}`.'
        )
    return Path(get_installed_path(distribution)) / '.mim' / 'configs'


def _nearest(path: Path, root: Path, at_path: bool) -> str:
    """Return a sentence that names the configs nearest to a missing one."""
    elsewhere = [*_of_that_name(path)]
    if elsewhere:
        return f'Did you mean {elsewhere[0]}?'
    if not root.is_dir():
        return f'Nor does the folder {root}.'
    # a folder of one's own may hold all of a data set
    inside = root.glob('*.py') if at_path else root.rglob('*.py')
    files = {file.stem: file for file in inside}
    where = 'in' if at_path else 'under'
    names = difflib.get_close_matches(path.stem, files, n=3, cutoff=0.5)
    if not names:
        return f'No config {where} {root} has a similar name.'
    nearest = [files[name].relative_to(root).as_posix() for name in names]
    return f'Nearest {where} {root}: {", ".join(nearest)}.'


def _of_that_name(path: Path) -> Iterator[str]:
    """Yield the names in any zoo of configs with this folder and file name."""
    name = '/'.join(path.parts[-2:])
    name = name[: -len('.py')] if name.endswith('.py') else name
    zoos = [scope for scope in SCOPES if is_installed(MODULE2PACKAGE[scope])]
    for package in (*zoos, 'mmselfdistill'):
        if (zoo_folder(package) / f'{name}.py').is_file():
            yield f'{package}::{name}'


def find_self_distill(cfg: Config) -> dict[str, Any] | None:
    """Return the settings of the hook of self-distillation, whatever its key.

    Returns:
        dict | None: The settings in the config, not a copy; None if there are none.

    Raises:
        ValueError: If a hook of this package is misspelt, one has no type, there are
            several, or ``custom_hooks`` is no list.
    """
    found = _all_of_ours(cfg)
    check_one([name_of(hook['type']) for hook in found])
    return found[0] if found else None


def pop_self_distill(cfg: Config) -> list[str]:
    """Take every hook of self-distillation out of a config, whatever its key.

    Returns:
        list[str]: The names of their classes.

    Raises:
        ValueError: If one is misspelt or has no type, or ``custom_hooks`` is no list.
    """
    found = _all_of_ours(cfg)
    pop_hooks(cfg, found)
    return [name_of(hook['type']) for hook in found]


def hooks_of(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of all hooks of a config, not copies."""
    default = (cfg.get('default_hooks') or {}).values()
    return [hook for hook in (*default, *(cfg.get('custom_hooks') or ())) if hook]


def pop_hooks(cfg: Config, hooks: Iterable[Mapping[str, Any]]) -> None:
    """Take hooks out of a config, given as the very settings in it."""
    taken = [id(hook) for hook in hooks]
    default = cfg.get('default_hooks') or {}
    for key in [key for key, hook in default.items() if id(hook) in taken]:
        del default[key]
    if cfg.get('custom_hooks'):
        custom = [hook for hook in cfg.custom_hooks if id(hook) not in taken]
        cfg.custom_hooks = custom


def _all_of_ours(cfg: Config) -> list[dict[str, Any]]:
    custom = cfg.get('custom_hooks') or []
    if not isinstance(custom, (list, tuple)):
        raise ValueError(f'custom_hooks: expected a list of hooks, but got {custom}')
    default = (cfg.get('default_hooks') or {}).items()
    named = [(f'default_hooks.{key}', hook) for key, hook in default]
    named += [('custom_hooks', hook) for hook in custom]
    return [hook for where, hook in named if _is_ours(where, hook)]


def _is_ours(where: str, hook: Any) -> bool:
    if hook is None:
        return False
    if not isinstance(hook, dict):
        raise ValueError(f'{where}: expected the settings of a hook, but got {hook!r}')
    if 'type' not in hook:
        raise ValueError(
            f"{where}: expected a type, such as 'mmselfdistill.EMATeacherHook', but "
            f'got only {dict(hook)}'
        )
    found = hook['type']
    if isinstance(found, str):
        name, found = found, None
        # what nobody knows is MMEngine's to say
        with suppress(Exception):
            found = HOOKS.get(name)
        names = mmselfdistill.hooks.__all__
        # less, and MMDetection's MeanTeacherHook and DetVisualizationHook are near
        near = difflib.get_close_matches(name_of(name), names, cutoff=0.9)
        if found is None and (near or name.startswith('mmselfdistill.')):
            ours = [f'mmselfdistill.{each}' for each in names]
            check_choice(f'{where}.type', name, ours)
    return isinstance(found, type) and issubclass(found, DistillHook)
