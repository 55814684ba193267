"""MMEngine's logs of a work dir: what was written at which epoch or iteration."""

from __future__ import annotations

import json
from bisect import bisect
from pathlib import Path
from typing import Any, Iterator, Mapping

from mmengine.config import Config
from mmengine.runner.utils import calc_dynamic_intervals


def config_of(folder: Path) -> Config:
    """Return the config of the last start of a run; an empty one if there is none."""
    paths = sorted(folder.glob('*/vis_data/config.py'))
    return config_at(paths[-1]) if paths else Config()


def config_at(path: Path) -> Config:
    """Return a config that MMEngine wrote; an empty one if there is no such file."""
    if not path.is_file():
        return Config()
    # what the run imported may need a machine, or a folder, that is not here
    return Config.fromfile(path, import_custom_modules=False)


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log.

    Raises:
        ValueError: If a line but the last is broken.
    """
    lines = path.read_text().splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            # a run that was killed may leave half a line at the end
            if number < len(lines):
                raise ValueError(f'{path}, line {number}: {error}') from error
    return entries


def counts_epochs(entries: list[dict[str, Any]]) -> bool:
    """Say whether metrics were logged by epoch: iterations are more than epochs."""
    epochs = [entry['epoch'] for entry in entries if 'epoch' in entry]
    at = [entry['step'] for entry in entries if 'loss' not in entry]
    # a run of iterations is in its first epoch throughout, and has ended none
    return bool(epochs) and (not at or 0 < max(at) <= max(epochs))


def validations(
    log: list[dict[str, Any]], cfg: Mapping[str, Any], last: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield metrics after the epoch or iteration of each.

    MMEngine logs the epoch by default, and a run of iterations stays in epoch 0. There
    it is the next iteration after which the config validates.

    Args:
        log (list[dict]): Of one start of a run.
        cfg (Mapping): Its config.
        last (int): The last validation before this start.
    """
    done = 0
    for entry in log:
        if 'loss' in entry:
            done = entry['step']
        elif entry['step'] > 0:
            yield entry['step'], entry
        else:
            last = _next_validation(cfg.get('train_cfg') or {}, max(done, last + 1))
            yield last, entry


def _next_validation(train_cfg: Mapping[str, Any], first: int) -> int:
    """Return the first iteration from `first` on after which a run validates."""
    changes = [tuple(each) for each in train_cfg.get('dynamic_intervals') or ()]
    interval = train_cfg.get('val_interval', 1)
    milestones, intervals = calc_dynamic_intervals(interval, changes)
    begin, end = train_cfg.get('val_begin', 1), train_cfg.get('max_iters', first)
    for at in range(max(first, begin), end):
        if at % intervals[bisect(milestones, at + 1) - 1] == 0:
            return at
    return max(first, end)
