"""The JSON that benchmarks write, and the tables that they print."""

from __future__ import annotations

import datetime
import json
import statistics
from importlib import import_module
from pathlib import Path
from typing import Any, Dict

import torch
from rich.table import Table

import mmselfdistill
from mmselfdistill.version import source_hash
from tools.benchmarks.iterations import MEANINGS
from tools.benchmarks.subjects import device_name

Record = Dict[str, Any]
_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy', 'cv2')


class Results:
    """Records in a JSON file, which is written whenever one is added.

    Args:
        path (Path): Is read where it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        if path.exists():
            self.records = json.loads(path.read_text())['records']

    def find(self, settings: Record) -> Record | None:
        """Return a record of some settings and today's versions, without error."""
        today = versions()
        return next(
            (
                record
                for record in self.records
                if record['settings'] == settings
                and record['versions'] == today
                and 'error' not in record
            ),
            None,
        )

    def add(self, settings: Record, **measured: Any) -> Record:
        """Write a record; it replaces one of the same settings."""
        record = dict(settings=settings, date=_now(), versions=versions(), **measured)
        others = [each for each in self.records if each['settings'] != settings]
        self.records = [*others, record]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(dict(records=self.records), indent=1))
        return record


def write_whole(path: Path, text: str) -> None:
    """Write a file, all or nothing."""
    spare = path.with_suffix('.tmp')
    spare.write_text(text)
    spare.replace(path)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


def versions() -> dict[str, str]:
    """Return what a figure depends on besides its settings."""
    return dict(
        mmselfdistill=mmselfdistill.__version__,
        source=source_hash()[:16],
        torch=torch.__version__,
        cuda=str(torch.version.cuda),
        device=device_name(),
        **{name: _version(name) for name in _PACKAGES},
    )


def _version(package: str) -> str:
    try:
        return str(import_module(package).__version__)
    except ImportError:
        return 'absent'


def ratio(record: Record, kind: str, base: str) -> list[float]:
    """Return the lower quartile, the median and the upper one of rounds' ratios."""
    seconds = record['seconds']
    if kind not in seconds or base not in seconds:
        return []
    ratios = [a / b for a, b in zip(seconds[kind], seconds[base])]
    return statistics.quantiles(ratios, n=4, method='inclusive')


def in_words(quartiles: list[float], digits: int = 2) -> str:
    """Write a median with its quartiles: 1.31 (1.29-1.34)."""
    if not quartiles:
        return ''
    low, middle, high = (f'{each:.{digits}f}' for each in quartiles)
    return f'{middle} ({low}-{high})'


def short(name: str) -> str:
    """Return the model in a config's name: retinanet_r50."""
    return '_'.join(Path(name.rpartition('::')[2]).stem.split('_')[:2])


def table_of_kinds(record: Record) -> Table:
    """Return the table of one model: every kind of iteration."""
    settings = record['settings']
    rounds = len(record['seconds']['stock'])
    table = Table(
        title=f'{short(settings["model"])}, {settings["batch"]} images of '
        f'{settings["size"]} pixels, precision {settings["amp"]}: medians and '
        f'quartiles of {rounds} rounds on {record["versions"]["device"]}'
    )
    table.add_column('kind')
    for name in ('ms', 'to stock', 'to limit', 'peak MiB'):
        table.add_column(name, justify='right')
    table.add_column('is')
    for kind, seconds in record['seconds'].items():
        peak = record['peaks'][kind]
        table.add_row(
            kind,
            f'{1000 * statistics.median(seconds):.1f}',
            in_words(ratio(record, kind, 'stock'), 3),
            in_words(ratio(record, kind, 'limit'), 3),
            '' if peak is None else f'{peak / 2**20:.0f}',
            MEANINGS[kind],
        )
    return table


def summary(records: list[Record]) -> Table:
    """Return the table of all models: what a teacher and what we add to stock."""
    table = Table(title='Medians (quartiles) of ratios, measured in turns')
    kinds = ('limit', 'naive', 'ours', 'features', 'logits', 'unlabeled', 'silent')
    table.add_column('model', no_wrap=True)
    table.add_column('stock, ms', justify='right')
    for kind in kinds:
        table.add_column(f'{kind} / stock', justify='right')
    table.add_column('ours / limit', justify='right')
    table.add_column('ours / stock, memory', justify='right')
    for record in records:
        settings = record['settings']
        name = f'{short(settings["model"])}, {settings["batch"]} x {settings["size"]}'
        if 'error' in record:
            table.add_row(name, record['error'])
            continue
        peaks = record['peaks']
        more = peaks['stock'] and peaks.get('ours')
        table.add_row(
            name,
            f'{1000 * statistics.median(record["seconds"]["stock"]):.0f}',
            *(in_words(ratio(record, kind, 'stock')) for kind in kinds),
            in_words(ratio(record, 'ours', 'limit')),
            f'{more / peaks["stock"]:.2f}' if more else '',
        )
    return table
