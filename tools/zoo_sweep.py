"""Try the plugin on every family of configs of both zoos, and write docs/zoo.md.

    python tools/zoo_sweep.py [--filter REGEX] [--jobs N] [--list]

The configs are found in the installed frameworks: of each folder, the one with the
shortest name, and one more that is of another kind; for one that does not train in
stock, the next of its kind as well. Each is tried in a process of its
own, on images of noise with random weights: a stock step; the terms at equal weights;
three steps with a running average as the teacher. Results are kept in
work_dirs/zoo/results.jsonl: after an interruption, or with another filter, what was
tried with this version of the package is not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from zoo_check import check_config  # type: ignore[import-not-found]
from zoo_configs import (  # type: ignore[import-not-found]
    Entry,
    discover,
    next_of_kind,
)
from zoo_report import write_report  # type: ignore[import-not-found]

from mmselfdistill.version import source_hash
from mmselfdistill.zoo import zoo_folder

ZOOS = ('mmdet', 'mmseg')
# how many more of a kind are tried until one trains in stock
SECOND_CHOICES = 2
# a model that asks for more must not stop what else the machine does
MEMORY_LIMIT = 16 * 2**30


def version() -> str:
    """Return what a result depends on: this package's source, and the frameworks."""
    return f'{source_hash()[:12]}-torch{torch.__version__}'


def run_one(entry: Entry, root: Path, path: Path) -> None:
    """Try one config, in a process of its own, and write its record to a file."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    MMLogger.get_instance('zoo', log_level='ERROR')
    known: dict[str, Any] = {}

    def save(record: dict[str, Any]) -> None:
        known.update(record)
        path.write_text(json.dumps(known))

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
        io.StringIO()
    ):
        try:
            check_config(entry.zoo, root, entry.name, save)
        except BaseException as error:
            lines = str(error).strip().splitlines() or ['']
            save(
                dict(
                    error=f'{type(error).__name__}: {lines[0]}'[:300],
                    trace=traceback.format_exc()[-3000:],
                )
            )


class Sweep:
    """Runs entries in parallel processes, and keeps their records.

    Args:
        folder (Path): Where records are kept.
        jobs (int): The number of processes.
        timeout (float): Seconds that one may take.
    """

    def __init__(self, folder: Path, jobs: int, timeout: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.results = folder / 'results.jsonl'
        self.folder = folder
        self.jobs = jobs
        self.timeout = timeout
        self.version = version()

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records of this version by key."""
        if not self.results.exists():
            return {}
        lines = self.results.read_text().splitlines()
        every = [json.loads(line) for line in lines]
        return {r['key']: r for r in every if r['version'] == self.version}

    def run(self, entries: list[Entry]) -> dict[str, dict[str, Any]]:
        """Try what was not tried with this version, and return all records."""
        known = self.records()
        waiting = [entry for entry in entries if entry.key not in known]
        count = len(waiting)
        running: dict[Entry, tuple[Any, float, Path]] = {}
        began, done = time.time(), 0
        context = mp.get_context('fork')
        while waiting or running:
            while waiting and len(running) < self.jobs:
                entry = waiting.pop(0)
                path = self.folder / f'{entry.key.replace("/", "-")}.json'
                path.unlink(missing_ok=True)
                root = zoo_folder(entry.zoo)
                process = context.Process(
                    target=run_one, args=(entry, root, path), daemon=True
                )
                process.start()
                running[entry] = (process, time.time(), path)
            time.sleep(0.1)
            for entry, (process, start, path) in list(running.items()):
                late = time.time() - start > self.timeout
                if process.is_alive() and not late:
                    continue
                if process.is_alive():
                    process.kill()
                process.join()
                record = self._finish(entry, process, path, late, time.time() - start)
                del running[entry]
                done += 1
                left = (time.time() - began) / done * (count - done)
                print(
                    f'[{done}/{count}, {left / 60:.0f} min left] '
                    f'{entry.key}: {record["part"]} {record.get("error", "")[:120]}',
                    flush=True,
                )
        return self.records()

    def _finish(
        self, entry: Entry, process: Any, path: Path, late: bool, seconds: float
    ) -> dict[str, Any]:
        record = json.loads(path.read_text()) if path.exists() else dict(part='stock')
        if late:
            record['error'] = f'took more than {self.timeout:.0f} s'
        elif process.exitcode != 0:
            record['error'] = f'the process ended with code {process.exitcode}'
        record.update(key=entry.key, version=self.version, seconds=round(seconds, 1))
        with self.results.open('a') as file:
            file.write(json.dumps(record) + '\n')
        path.unlink(missing_ok=True)
        return record


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--filter', default='', help='regular expression on names')
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time')
    parser.add_argument('--timeout', type=float, default=600, help='seconds a config')
    parser.add_argument('--list', action='store_true', help='only show the configs')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/zoo'))
    parser.add_argument('--report', type=Path, help='write the table here')
    return parser.parse_args()


def main() -> None:
    """Sweep, then write the report."""
    args = parse_args()
    roots = {zoo: zoo_folder(zoo) for zoo in ZOOS if find_spec(zoo)}
    entries = [
        entry
        for zoo, root in roots.items()
        for entry in discover(zoo, root, args.filter)
    ]
    if args.list:
        print('\n'.join(entry.key for entry in entries))
        return
    # nothing is downloaded, nor asked for
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_VERBOSITY='error')
    for zoo in {entry.zoo for entry in entries}:
        # once, and not in each process
        importlib.import_module(f'{zoo}.utils').register_all_modules(False)
    # an end from outside ends the processes too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sweep = Sweep(args.work_dir, args.jobs, args.timeout)
    tried: set[Entry] = set()
    records: dict[str, dict[str, Any]] = {}
    for _ in range(1 + SECOND_CHOICES):
        records = sweep.run(entries)
        for entry in sorted({*entries} - tried):
            tried.add(entry)
            if records[entry.key]['part'] == 'stock':
                other = next_of_kind(entry, roots[entry.zoo])
                entries += [other] if other else []
    if args.report:
        keys = sorted(entry.key for entry in tried)
        write_report(args.report, [records[key] for key in keys], args.filter)


if __name__ == '__main__':
    main()
