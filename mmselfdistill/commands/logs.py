"""MMEngine's logs of a work dir: what was written at which epoch or iteration."""

from __future__ import annotations

import json
import math
from bisect import bisect
from fractions import Fraction
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping

from mmengine.config import Config
from mmengine.runner.utils import calc_dynamic_intervals

from mmselfdistill.commands import stretch
from mmselfdistill.zoo import hooks_of, read_file

Log = List[Dict[str, Any]]  # the entries of one start of a run


def config_of(folder: Path) -> Config:
    """Return the config of the last start of a run; an empty one if there is none.

    A test in the same work dir writes a config too, but logs no loss next to it.
    """
    for path in reversed(list(training_logs(folder))):
        if path.with_name('config.py').is_file():
            return config_at(path.with_name('config.py'))
    return Config()


def training_logs(folder: Path) -> dict[Path, Log]:
    """Return the logs in a work dir that have a loss, in the order of their starts."""
    paths = sorted(folder.glob('*/vis_data/scalars.json'))
    logs = {path: entries_of(path) for path in paths}
    return {k: v for k, v in logs.items() if any(map(is_training, v))}


def is_training(entry: Mapping[str, Any]) -> bool:
    """Say whether an entry is one of training: a validation may log a loss too."""
    return 'loss' in entry and 'val_loss' not in entry


def config_at(path: Path) -> Config:
    """Return a config that MMEngine wrote; an empty one if there is no such file."""
    if not path.is_file():
        return Config()
    # what the run imported may need a machine, or a folder, that is not here
    return read_file(path, imports=False)


def entries_of(path: Path) -> Log:
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


def of_last_run(logs: Mapping[Path, Log]) -> dict[Path, Log]:
    """Return the logs of the last run: its start, and those that resumed it."""
    found: dict[Path, Log] = {}
    for path, log in logs.items():
        first, *others = (entry['step'] for entry in log if is_training(entry))
        begins = bool(others) and first <= others[0] - first
        if begins and not config_at(path.with_name('config.py')).get('resume'):
            # nothing was logged before it: another run, which was not resumed
            found = {}
        found[path] = log
    return found


def counts_epochs(entries: Log, cfg: Mapping[str, Any]) -> bool:
    """Say whether metrics were logged by epoch.

    The config says it, where it has one of MMEngine's loops. Otherwise iterations are
    more than epochs.

    Args:
        entries (list[dict]): Of all starts of a run.
        cfg (Mapping): Its config; empty if there is none.
    """
    epochs = [entry['epoch'] for entry in entries if 'epoch' in entry]
    at = [entry['step'] for entry in entries if not is_training(entry)]
    train_cfg = cfg.get('train_cfg') or {}
    known = train_cfg and stretch.loop_of(train_cfg) in stretch.INTERVALS
    if known and max(at, default=0) > 0:
        logger = (cfg.get('default_hooks') or {}).get('logger') or {}
        by_epoch = bool(logger.get('log_metric_by_epoch', True))
        return stretch.counts_epochs(train_cfg) and by_epoch
    # a run of iterations is in its first epoch throughout, and has ended none
    return bool(epochs) and (not at or 0 < max(at) <= max(epochs))


def place(logs: Iterable[Log], by_epoch: bool) -> None:
    """Write into each entry of training its epoch or iteration, as ``at``.

    A log processor that counts iterations logs no epoch. It is worked out from the
    length of one.
    """
    logs = list(logs)
    length = _length_of_epoch(logs) if by_epoch else 1
    for entry in (entry for log in logs for entry in log if is_training(entry)):
        at = entry['step']
        if by_epoch:
            at = entry['epoch'] if 'epoch' in entry else math.ceil(at / length)
        entry['at'] = at


def _length_of_epoch(logs: list[Log]) -> Fraction:
    """Return the most iterations of an epoch that are seen before validations."""
    length = Fraction(1)
    for log in logs:
        done = 0
        for entry in log:
            if is_training(entry):
                done = entry['step']
            elif entry['step'] > 0:
                length = max(length, Fraction(done, entry['step']))
    return length


def validations(
    log: Log, cfg: Mapping[str, Any], last: int
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
        if is_training(entry):
            done = entry['step']
        elif entry['step'] > 0:
            yield entry['step'], entry
        else:
            last = _next_validation(cfg, max(done, last + 1))
            yield last, entry


def _next_validation(cfg: Mapping[str, Any], first: int) -> int:
    """Return the first iteration from `first` on after which a run validates."""
    train_cfg = cfg.get('train_cfg') or {}
    changes = [tuple(each) for each in train_cfg.get('dynamic_intervals') or ()]
    default = stretch.INTERVALS.get(stretch.loop_of(train_cfg), 1)
    interval = train_cfg.get('val_interval', default)
    milestones, intervals = calc_dynamic_intervals(interval, changes)
    begin, end = train_cfg.get('val_begin', 1), train_cfg.get('max_iters', first)
    # they make the run longer
    end *= max((hook.get('generations') or 1 for hook in hooks_of(cfg)), default=1)
    for at in range(max(first, begin), end):
        if at % intervals[bisect(milestones, at + 1) - 1] == 0:
            return at
    return max(first, end)
