"""What is known of each config: a line of results.jsonl for each that was tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mmselfdistill.version import source_hash
from tools.benchmarks.results import write_whole


def version() -> str:
    """Return what a result depends on: this package's source, and PyTorch."""
    return f'{source_hash()[:12]}-torch{torch.__version__}'


class Records:
    """The records of configs, kept in a file.

    Args:
        path (Path): The file. Its folder is made when there is something to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = version()

    def every(self) -> list[dict[str, Any]]:
        """Return all records, of any version, in the order in which they were added."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the records of this version by their configs."""
        return {r['key']: r for r in self.every() if r['version'] == self.version}

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest record of each config, of any version, by their keys."""
        newest = {r['key']: r for r in self.every()}
        return [newest[key] for key in sorted(newest)]

    def compact(self) -> None:
        """Leave the newest record of each config in the file."""
        lines = [f'{json.dumps(record)}\n' for record in self.newest()]
        write_whole(self.path, ''.join(lines))

    def add(self, key: str, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Keep the record of a config at once, next to what other processes write."""
        whole = dict(record, key=key, version=self.version, seconds=round(seconds, 1))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # one write: no other comes in between
        with self.path.open('ab', buffering=0) as file:
            file.write(f'{json.dumps(whole)}\n'.encode())
        return whole
