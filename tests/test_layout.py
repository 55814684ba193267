"""Which part may import which: the arrows of CONTRIBUTING.md, and none back."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmselfdistill'
FILES = sorted(p for p in PACKAGE.rglob('*.py') if '.mim' not in p.parts)
FRAMEWORKS = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain')

each_file = pytest.mark.parametrize(
    'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)


def allowed() -> dict[str, set[str]]:
    """Read the table of CONTRIBUTING.md: part to the parts that it may import."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    table = re.findall(r'^\| `([\w/.]+)` \| [^|]* \| ([^|]*) \|$', text, re.MULTILINE)
    return {
        part.rstrip('/').replace('.py', ''): set(re.findall(r'`(\w+)`', imports))
        for part, imports in table
    }


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].replace('.py', '')


def imports(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Yield the absolute dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import else ast.walk(tree)
    package = ('mmselfdistill', *path.relative_to(PACKAGE).parts[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = '.'.join([*base, *filter(None, [node.module])])
            yield from (f'{module}.{alias.name}' for alias in node.names)


def test_every_part_is_in_the_table_and_the_table_has_no_circle() -> None:
    table = allowed()
    assert {part_of(path) for path in FILES} == table.keys()
    done: set[str] = set()
    while table:
        free = [part for part, needs in table.items() if needs <= done]
        assert free, f'these import each other: {sorted(table)}'
        done.update(free)
        table = {part: needs for part, needs in table.items() if part not in done}


@each_file
def test_imports_look_one_way(path: Path) -> None:
    part = part_of(path)
    ours = [name.split('.') for name in imports(path) if 'mmselfdistill.' in name]
    used = {names[1] for names in ours} - {part}
    assert used <= allowed()[part]


@each_file
def test_only_hooks_and_commands_know_a_runner(path: Path) -> None:
    known = [
        name
        for name in imports(path)
        if re.match(r'mmengine\.(runner|hooks|optim)\b', name)
    ]
    # the loader of checkpoints and a class that they name are no Runner
    stored = ('mmengine.runner.checkpoint.', 'OneCycleParamScheduler')
    known = [name for name in known if not any(each in name for each in stored)]
    assert not known or part_of(path) in ('hooks', 'commands')


@each_file
def test_the_package_imports_without_the_frameworks(path: Path) -> None:
    every = {name.split('.')[0] for name in imports(path)}
    first = {name.split('.')[0] for name in imports(path, at_import=True)}
    assert not first & {*FRAMEWORKS}
    known = part_of(path) in ('images', 'families', 'testing', 'visualization')
    assert not every & {*FRAMEWORKS} or known


def test_losses_have_a_test_of_their_name() -> None:
    losses = {path.stem for path in (PACKAGE / 'losses').glob('[!_]*.py')} - {'common'}
    tests = {path.stem for path in (ROOT / 'tests/test_losses').glob('test_*.py')}
    assert {f'test_{loss}' for loss in losses} <= tests
