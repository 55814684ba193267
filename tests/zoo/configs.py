"""Which configs of the zoos stand for their families."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from mmengine.config import Config

from mmselfdistill.zoo import zoo_folder

# folders of fragments and of data sets
NOT_FAMILIES = ('_base_', 'common', 'dsdl')
PER_FOLDER = 2
ZOOS = ('mmdet', 'mmseg')


class Entry(NamedTuple):
    """One config of a zoo."""

    zoo: str
    name: str  # relative to the zoo's folder of configs

    @property
    def key(self) -> str:
        """Return the name that the frameworks know it by."""
        return f'{self.zoo}::{self.name}'


def chosen(
    pattern: str, choice: int, known: Mapping[str, dict[str, Any]]
) -> Iterator[Entry]:
    """Yield the configs of the installed zoos that are tried.

    Args:
        pattern (str): A regular expression that a key must match.
        choice (int): 1 for the configs that stand for a folder, 2 for the next of its
            kind where such a config does not train in stock, and so on.
        known (Mapping): The records of the configs that were tried, by their keys.
    """
    for zoo in filter(find_spec, ZOOS):
        root = zoo_folder(zoo)
        for first in discover(zoo, root, pattern):
            entry: Entry | None = first
            for _ in range(choice - 1):
                record = known.get(entry.key, {}) if entry else {}
                stock = record.get('part') == 'stock'
                entry = next_of_kind(entry, root) if entry and stock else None
            if entry and re.search(pattern, entry.key):
                yield entry


def discover(zoo: str, root: Path, pattern: str = '') -> Iterator[Entry]:
    """Yield one or two configs of each folder: the shortest name of each kind.

    Args:
        zoo (str): The zoo's name.
        root (Path): The folder of its configs.
        pattern (str): A regular expression that a key must match. Which configs
            stand for a folder does not depend on it. Defaults to '': all.
    """
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name in NOT_FAMILIES:
            continue
        names = [path.relative_to(root).as_posix() for path in folder.rglob('*.py')]
        if not any(re.search(pattern, Entry(zoo, name).key) for name in names):
            # reading configs takes time
            continue
        kinds: list[Any] = []
        for name in sorted(names, key=_shortest_first):
            kind = kind_of(root / name)
            if kind is not None and kind not in kinds:
                kinds.append(kind)
                if re.search(pattern, Entry(zoo, name).key):
                    yield Entry(zoo, name)
            if len(kinds) == PER_FOLDER:
                break


def next_of_kind(entry: Entry, root: Path) -> Entry | None:
    """Return the next config of a folder that is of a kind with one, if any."""
    kind = kind_of(root / entry.name)
    if not isinstance(kind, list):
        return None
    folder = root / entry.name.split('/')[0]
    names = [path.relative_to(root).as_posix() for path in folder.rglob('*.py')]
    names.sort(key=_shortest_first)
    later = names[names.index(entry.name) + 1 :]
    same = (name for name in later if kind_of(root / name) == kind)
    return next((Entry(entry.zoo, name) for name in same), None)


def _shortest_first(name: str) -> tuple[int, int, str]:
    return name.count('/'), len(name), name


def kind_of(path: Path) -> Any:
    """Return what tells a model from others: types of heads and losses, and its task.

    None is a file that is no config of a model that is trained; one that cannot be
    read here is a kind too, and its run will say why.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        return type(error).__name__
    if 'type' not in cfg.get('model', {}) or 'train_dataloader' not in cfg:
        return None
    evaluator = cfg.get('test_evaluator') or {}
    evaluators = evaluator if isinstance(evaluator, list) else [evaluator]
    return [list(_types(cfg.model)), [each.get('type') for each in evaluators]]


def _types(cfg: Any, key: str = 'model') -> Iterator[Any]:
    if isinstance(cfg, dict):
        if re.search('^(model|detector|loss.*|.*head)$', key):
            yield cfg.get('type')
        for name, value in sorted(cfg.items()):
            yield from _types(value, name)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from _types(value, key)
