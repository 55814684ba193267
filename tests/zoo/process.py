"""One config, tried in a process of its own: whatever it does, the rest goes on."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import re
import resource
import signal
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger

from zoo.check import check_config

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = re.compile(r'/[^\s"\']*/(?:site-packages|python3\.\d+)/')
# a model that asks for more must not stop what else the machine does
MEMORY_LIMIT = 16 * 2**30


def tried(key: str, path: Path, limit: float) -> dict[str, Any]:
    """Try a config, and return what is known of it.

    Args:
        key (str): The config.
        path (Path): A file for what the process says.
        limit (float): The seconds after which pytest-timeout ends the test.
    """
    register(key.split('::')[0])
    # what was imported is there
    process = multiprocessing.get_context('fork').Process(
        target=try_config, args=(key, path), daemon=True
    )
    process.start()
    late = False
    try:
        process.join()
    except pytest.fail.Exception:
        # of pytest-timeout
        late = True
    finally:
        process.kill()
        process.join()
    record: dict[str, Any] = dict(part='stock')
    if path.exists():
        record = json.loads(path.read_text())
    if late:
        record['error'] = f'took more than {limit:.0f} s'
    elif process.exitcode != 0:
        record['error'] = f'the process ended with code {process.exitcode}'
    return record


@functools.lru_cache(maxsize=None)
def register(zoo: str) -> None:
    """Import a framework: once, and not in each process."""
    importlib.import_module(f'{zoo}.utils').register_all_modules(False)


def try_config(key: str, path: Path) -> None:
    """Try a config in this process, and keep its record in a file."""
    # the test that waits for this process ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    MMLogger.get_instance('zoo', log_level='ERROR')
    known: dict[str, Any] = {}

    def save(record: dict[str, Any]) -> None:
        known.update(record)
        path.write_text(json.dumps(known))

    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        try:
            check_config(key, save)
        except BaseException as error:
            lines = str(error).strip().splitlines() or ['']
            first = portable(f'{type(error).__name__}: {lines[0]}')[:300]
            trace = portable(traceback.format_exc())[-3000:]
            save(dict(error=first, trace=trace))


def portable(text: str) -> str:
    """Return a message without the folders of this machine: records are published."""
    return _PACKAGES.sub('', text).replace(f'{ROOT}/', '')
