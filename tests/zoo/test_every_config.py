"""Each config that trains in stock trains with the plugin."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from zoo.process import tried
from zoo.records import Records

# of one config
SECONDS = 600

pytestmark = pytest.mark.zoo


@pytest.mark.timeout(SECONDS)
def test_trains(key: str, records: Records, tmp_path: Path) -> None:
    record = records.read().get(key)
    if record is None:
        start = time.time()
        record = tried(key, tmp_path / 'record.json', SECONDS)
        record = records.add(key, record, time.time() - start)
    error = record.get('error', 'unknown')
    if record['part'] == 'stock':
        pytest.skip(f'does not train in stock: {error}')
    if record['part'] != 'done':
        pytest.fail(error, pytrace=False)
