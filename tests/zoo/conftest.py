"""Which configs are tried, and where their records are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from zoo.configs import chosen
from zoo.records import Records

RECORDS = pytest.StashKey[Records]()
KEYS = pytest.StashKey['list[str]']()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup('zoo')
    group.addoption('--zoo-filter', default='', help='regular expression on configs')
    group.addoption(
        '--zoo-choice',
        type=int,
        default=1,
        help='2: the next of its kind for each config that did not train in stock',
    )
    group.addoption(
        '--zoo-dir', type=Path, default=Path('work_dirs/zoo'), help='of results.jsonl'
    )


def pytest_configure(config: pytest.Config) -> None:
    # nothing is downloaded, nor asked for
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_VERBOSITY='error')
    records = Records(config.getoption('--zoo-dir') / 'results.jsonl')
    config.stash[RECORDS] = records
    if hasattr(config, 'workerinput'):
        config.stash[KEYS] = config.workerinput['zoo']
        return
    pattern, choice = config.getoption('--zoo-filter'), config.getoption('--zoo-choice')
    keys = [entry.key for entry in chosen(pattern, choice, records.read())]
    if not keys:
        text = f'No config matching {pattern!r} has a choice {choice} to try.'
        pytest.exit(text, pytest.ExitCode.NO_TESTS_COLLECTED)
    config.stash[KEYS] = keys


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    # pytest-xdist wants the same tests of each process, also of one that starts late
    node.workerinput['zoo'] = node.config.stash[KEYS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'key' in metafunc.fixturenames:
        keys: list[str] = metafunc.config.stash[KEYS]
        metafunc.parametrize('key', keys)


@pytest.fixture
def records(pytestconfig: pytest.Config) -> Records:
    return pytestconfig.stash[RECORDS]
