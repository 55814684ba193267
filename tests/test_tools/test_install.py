from __future__ import annotations

import ast
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools import build_mmcv, install

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / 'tools' / 'build_mmcv.py'
REQUIREMENT = 'tinyops==1.0'
SETUP = "from setuptools import setup\nsetup(name='tinyops', version='1.0')\n"


def script(path: Path, text: str) -> str:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def fake_python(path: Path, version: str, headers: str = 'true') -> str:
    answer = f'{{"path": "{path}", "version": {version}, "headers": {headers}'
    return script(path, f'echo \'{answer}, "venv": true}}\'')


def test_any_python_3_can_read_the_installer() -> None:
    source = (ROOT / 'tools' / 'install.py').read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    imported = [node.module for node in ast.walk(tree) if type(node) is ast.ImportFrom]
    assert '__future__' not in imported


def test_first_supported_python_that_runs_is_taken(tmp_path: Path) -> None:
    shim = script(tmp_path / 'shim', 'exit 127')
    old = fake_python(tmp_path / 'old', '[3, 9]')
    bare = fake_python(tmp_path / 'bare', '[3, 12]', headers='false')
    good = fake_python(tmp_path / 'good', '[3, 10]')
    missing = str(tmp_path / 'missing')
    assert install.find_python([missing, shim, old, bare, good]) == good
    with pytest.raises(SystemExit, match=r'only 3\.9 was found: please install'):
        install.find_python([missing, shim, old])
    with pytest.raises(SystemExit, match=r'please install python3\.12-dev'):
        install.find_python([old, bare])


@pytest.mark.parametrize('cxx', [None, 'no-such-compiler'])
def test_missing_compiler_is_one_sentence(tmp_path: Path, cxx: str | None) -> None:
    env = {'PATH': str(tmp_path), **({'CXX': cxx} if cxx else {})}
    code = (
        'import sys; sys.path[:0] = ["tools"]; import install; install.find_compiler()'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=str(ROOT),
        env=env,
        capture_output=True,
        text=True,
    )
    (sentence,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert 'please install one, for example g++' in sentence
    assert (cxx or 'none was found') in sentence


def test_stamp_follows_what_is_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'requirements').mkdir()
    for name in ('setup.py', 'pyproject.toml', 'requirements/dev.txt'):
        (tmp_path / name).write_text('')
    monkeypatch.setattr(install, 'ROOT', tmp_path)
    first = install.content_key('openmmlab', 'torch==2.13.0')
    assert install.content_key('openmmlab', 'torch==2.13.0') == first
    assert install.content_key('onedl', 'torch==2.13.0') != first
    assert install.content_key('openmmlab', 'torch==2.12.0') != first
    (tmp_path / 'requirements/dev.txt').write_text('pytest\n')
    assert install.content_key('openmmlab', 'torch==2.13.0') != first


def test_torch_is_a_version_or_a_requirement() -> None:
    assert install.torch_requirement('2.4.1') == 'torch==2.4.1'
    assert install.torch_requirement('torch>=2.4,<3') == 'torch>=2.4,<3'


def test_half_installed_distributions_are_forgotten(tmp_path: Path) -> None:
    site = tmp_path / 'lib/python3.11/site-packages'
    for name in ('whole-1.0.dist-info', 'half-1.0.dist-info'):
        (site / name).mkdir(parents=True)
        (site / name / 'METADATA').write_text('')
    (site / 'whole-1.0.dist-info/INSTALLER').write_text('pip\n')
    install.drop_half_installed(tmp_path)
    assert [path.name for path in site.iterdir()] == ['whole-1.0.dist-info']


def test_wheel_key_tells_pytorch_builds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {build_mmcv.wheel_key('mmcv==2.1.0'), build_mmcv.wheel_key('mmcv==2.0.1')}
    keys.add(build_mmcv.wheel_key('mmcv==2.1.0', 'sm80'))
    for version in ('2.4.0+cpu', '2.4.0+cu121'):
        monkeypatch.setattr('torch.__version__', version)
        keys.add(build_mmcv.wheel_key('mmcv==2.1.0'))
    assert len(keys) == 5
    assert not any('/' in key for key in keys)


def test_progress_counts_objects_of_earlier_runs() -> None:
    done, left = build_mmcv.compiled_so_far('[1/40] c++ a\n[10/40] c++ b\n')
    assert (done, left) == (10, 30)
    line = build_mmcv.progress_line(120, done, left, total=77)
    assert line == '  47 of 77 objects, 2.0 min gone, about 6.0 min left'
    assert build_mmcv.compiled_so_far('') == (0, 0)
    assert 'preparing' in build_mmcv.progress_line(5, 0, 0, total=0)
    assert 'linking' in build_mmcv.progress_line(5, 77, 0, total=77)


def alive(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(timeout=5)
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass
    return False


def prepare(cache: Path, setup: str) -> Path:
    """Lay a source where the download would be."""
    arch = build_mmcv.visible_gpu_arch()
    key = build_mmcv.wheel_key(REQUIREMENT, arch)
    source = cache / 'mmselfdistill' / 'build' / key / 'source'
    source.mkdir(parents=True)
    (source / 'setup.py').write_text(setup)
    return source


def test_wheel_is_built_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = prepare(tmp_path, SETUP)
    wheel = build_mmcv.cached_wheel(REQUIREMENT)
    assert wheel.name.startswith('tinyops-1.0')
    assert not source.exists()
    before = wheel.stat().st_mtime_ns
    assert build_mmcv.cached_wheel(REQUIREMENT) == wheel
    assert wheel.stat().st_mtime_ns == before


def test_failed_build_shows_the_error_and_keeps_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = prepare(tmp_path, "raise SystemExit('fatal error: no such header')\n")
    with pytest.raises(
        SystemExit, match=r'(?s)^ *fatal error: no such header.*build\.log'
    ):
        build_mmcv.cached_wheel(REQUIREMENT)
    assert source.exists()


def test_interrupted_build_stops_the_compilers_and_frees_the_lock(
    tmp_path: Path,
) -> None:
    started = tmp_path / 'pid'
    wait = f'import os, time\nopen({str(started)!r}, "w").write(str(os.getpid()))\n'
    source = prepare(tmp_path, wait + 'time.sleep(60)\n' + SETUP)
    process = subprocess.Popen(
        [sys.executable, str(BUILD), REQUIREMENT],
        env=dict(os.environ, XDG_CACHE_HOME=str(tmp_path)),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline, 'the build did not start'
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not alive(int(started.read_text()))
    lock = source.parent.with_name(source.parent.name + '.lock')
    # Were it held still, this would wait for ever.
    with build_mmcv.locked(lock):
        pass
