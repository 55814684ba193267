from __future__ import annotations

import ast
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import install

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENT = 'tinyops==1.0'
SETUP = "from setuptools import setup\nsetup(name='tinyops', version='1.0')\n"
BUILD = f"""
import sys
from tools import install
install.mmcv_wheel(sys.executable, {REQUIREMENT!r})
"""


def script(path: Path, text: str) -> str:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_any_python_3_can_read_the_installer() -> None:
    source = (ROOT / 'tools' / 'install.py').read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    imported = [node.module for node in ast.walk(tree) if type(node) is ast.ImportFrom]
    assert '__future__' not in imported


def test_first_command_that_runs_is_taken(tmp_path: Path) -> None:
    shim, old = (
        script(tmp_path / 'shim', 'exit 127'),
        script(tmp_path / 'old', 'exit 1'),
    )
    good, missing = script(tmp_path / 'good', 'exit 0'), str(tmp_path / 'missing')
    assert install.first([missing, shim, old, good, sys.executable], [], '') == good
    with pytest.raises(SystemExit, match=r'Python\.h is needed: please install'):
        install.first(
            [missing, shim, old], ['-c', install.SUITS, '10', '12'], install.NO_PYTHON
        )


def test_this_python_suits_and_one_without_venv_does_not(tmp_path: Path) -> None:
    minor = sys.version_info[1]
    assert install.runs(sys.executable, '-c', install.SUITS, '10', '12')
    # PyTorch 2.13 has no wheel for a Python that the oldest stack takes
    assert not install.runs(sys.executable, '-c', install.SUITS, f'{minor + 1}', '99')
    (tmp_path / 'venv.py').write_text('raise ImportError')
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n{install.SUITS}'
    assert not install.runs(sys.executable, '-c', code, '10', '12')
    # nor a newer one than the stack has
    assert not install.runs(sys.executable, '-c', install.SUITS, '8', f'{minor - 1}')


def test_missing_compiler_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/install.py'), '--torch', 'none'],
        env={'PATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (1, install.NO_COMPILER)


def prepare(cache: Path, setup: str) -> Path:
    """Lay a source where the download would be, and return its folder."""
    key = subprocess.check_output([sys.executable, '-c', install.KEY], text=True)
    name = f'tinyops-1.0-{key.strip()}'
    source = cache / 'mmselfdistill' / 'build' / name / 'source' / 'tinyops'
    source.mkdir(parents=True)
    (source / 'setup.py').write_text(setup)
    return source


def test_wheel_is_built_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = prepare(tmp_path, SETUP)
    wheel = install.mmcv_wheel(sys.executable, REQUIREMENT)
    assert wheel.name.startswith('tinyops-1.0')
    # keyed by PyTorch and Python
    assert f'cp3{sys.version_info[1]}-' in wheel.parent.name
    assert not source.exists()
    before = wheel.stat().st_mtime_ns
    assert install.mmcv_wheel(sys.executable, REQUIREMENT) == wheel
    assert wheel.stat().st_mtime_ns == before


def test_failed_build_shows_the_error_and_keeps_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = prepare(tmp_path, "raise SystemExit('fatal error: no such header')\n")
    with pytest.raises(
        SystemExit, match=r'(?s)^ *fatal error: no such header.*build\.log'
    ):
        install.mmcv_wheel(sys.executable, REQUIREMENT)
    assert source.exists()


def test_steps_of_ninja_are_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ninja = script(tmp_path / 'ninja', 'echo "[1/40] c++ a"; echo b; sleep 2')
    with (tmp_path / 'lock').open('w') as lock:
        install.compile_wheel([ninja], tmp_path / 'log', lock.fileno())
    assert capsys.readouterr().out == '  compiled 1 of 40\n'
    assert (tmp_path / 'log').read_text().splitlines()[1] == 'b'


def test_the_next_waits_for_what_a_killed_one_has_begun(tmp_path: Path) -> None:
    started, marks = tmp_path / 'pid', tmp_path / 'marks'
    # one that outlives its parent for a moment, and goes through the second time
    wait = (
        f'import os, time\nopen({str(marks)!r}, "a").write("begun ")\n'
        f'if not os.path.exists({str(started)!r}):\n'
        f'    open({str(started)!r}, "w").write(str(os.getpid()))\n    time.sleep(3)\n'
        f'    open({str(marks)!r}, "a").write("ended ")\n    raise SystemExit(1)\n'
    )
    prepare(tmp_path, wait + SETUP)
    command = [sys.executable, '-c', BUILD]
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path))
    first = subprocess.Popen(command, env=env, cwd=ROOT)
    deadline = time.monotonic() + 180
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline, 'the build did not start'
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=20)
    subprocess.run(command, env=env, cwd=ROOT, check=True)
    # the lock was held until the first had ended
    assert marks.read_text().startswith('begun ended begun')
    assert len(list(tmp_path.glob('mmselfdistill/wheels/*/tinyops*.whl'))) == 1


@pytest.mark.parametrize('stack', install.STACKS)
def test_every_stack_pins_its_frameworks(stack: str) -> None:
    lines = (ROOT / 'requirements' / f'{stack}.txt').read_text().split()
    pinned = [line.partition('==')[0] for line in lines if '==' in line]
    assert len(pinned) == 4
    assert sum(name.endswith('mmcv') for name in pinned) == 1
