"""Compile mmcv's operators once and install the wheel in this environment.

    python tools/build_mmcv.py mmcv==2.1.0

The wheel is kept under the user's cache, keyed by all that its binary depends on:
the next environment with the same PyTorch and Python takes it from there.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Iterator, Sequence

import psutil
import torch

PIP = (sys.executable, '-m', 'pip')
NINJA_STEP = re.compile(r'\[(\d+)/(\d+)\]')
LINE_EVERY_SECONDS = 30.0
GIB = 2**30


def cache_dir() -> Path:
    """The directory of the user's cache that holds the builds and wheels."""
    base = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    return Path(base) / 'mmselfdistill'


def wheel_key(requirement: str, gpu_arch: str | None = None) -> str:
    """Name of what a compiled mmcv depends on, usable as a directory.

    Args:
        requirement (str): Distribution and version, such as 'mmcv==2.1.0'.
        gpu_arch (str, optional): Architecture that the CUDA operators are compiled
            for, None for the CPU only. Defaults to None.
    """
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    parts = [requirement.replace('==', '-'), f'torch-{torch.__version__}', python]
    parts += [sysconfig.get_platform(), gpu_arch or 'cpu']
    return re.sub(r'[^\w.+-]', '_', '-'.join(parts))


def visible_gpu_arch() -> str | None:
    """What mmcv's own build will compile for, which it decides by the same test."""
    if not torch.cuda.is_available():
        return 'forced' if os.environ.get('FORCE_CUDA') == '1' else None
    listed = os.environ.get('TORCH_CUDA_ARCH_LIST')
    major, minor = torch.cuda.get_device_capability()
    return listed or f'sm{major}{minor}'


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on `path`; the system drops it if we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('  another process is compiling the same mmcv: waiting', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def fetch_source(requirement: str, build: Path) -> Path:
    """Unpack the source distribution into `build` unless an earlier run did."""
    source = build / 'source'
    if source.exists():
        return source
    download = build / 'download'
    shutil.rmtree(download, ignore_errors=True)
    name = requirement.split('==')[0]
    options = ['-qq', '--no-deps', '--no-build-isolation', '--no-binary', name]
    subprocess.run(
        [*PIP, 'download', *options, '-d', str(download), requirement], check=True
    )
    (archive,) = download.glob('*.tar.gz')
    with tarfile.open(str(archive)) as tar:
        tar.extractall(str(download / 'unpacked'))
    (unpacked,) = (download / 'unpacked').iterdir()
    # Renamed when complete: a half-unpacked source is never taken for a whole one.
    unpacked.rename(source)
    return source


def build_environment() -> dict[str, str]:
    """Settings of the compilation; what the user has set stays."""
    env = dict(os.environ, MMCV_WITH_OPS='1')
    # Without debug symbols it takes half the time and a hundredth of the space.
    env['CFLAGS'] = (env.get('CFLAGS', '') + ' -g0').strip()
    cores = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()
    fit_in_memory = psutil.virtual_memory().available // (2 * GIB)
    env.setdefault('MAX_JOBS', str(max(1, min(cores or 1, fit_in_memory))))
    return env


def stop_on_sigterm(number: int, frame: FrameType | None) -> None:
    """End through exceptions, so that the compilers are ended too."""
    sys.exit(128 + number)


def compiled_so_far(log: str) -> tuple[int, int]:
    """Objects compiled in this run, and objects left, read from ninja's output.

    Args:
        log (str): Output of the build.
    """
    steps = NINJA_STEP.findall(log)
    done, of = (int(number) for number in steps[-1]) if steps else (0, 0)
    return done, of - done


def progress_line(seconds: float, done: int, left: int, total: int) -> str:
    """One line that says how far the compilation is and how long it may take.

    Args:
        seconds (float): Time since this run began.
        done (int): Objects compiled in this run.
        left (int): Objects still to compile.
        total (int): Objects in all, with those that an earlier run has compiled.
    """
    gone = f'{seconds / 60:.1f} min gone'
    if not done:
        return f'  preparing the compilation, {gone}'
    if not left:
        return f'  {total} of {total} objects, linking, {gone}'
    to_go = f'about {seconds / done * left / 60:.1f} min left'
    return f'  {total - left} of {total} objects, {gone}, {to_go}'


def watch(process: subprocess.Popen[bytes], log: Path, source: Path) -> None:
    """Print progress until the process ends: in place, or now and then in a log."""
    start, last, total = time.monotonic(), 0.0, 0
    while process.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        if not total:
            for plan in source.glob('build/temp*/build.ninja'):
                total = len(re.findall(r'^build .*\.o:', plan.read_text(), re.M))
        done, left = compiled_so_far(log.read_text(errors='replace'))
        line = progress_line(now - start, done, left, total)
        if sys.stdout.isatty():
            print(f'\r{line:<70}', end='', flush=True)
        elif now - last >= LINE_EVERY_SECONDS:
            print(line, flush=True)
            last = now
    if sys.stdout.isatty():
        print()


def compile_wheel(requirement: str, build: Path, lock: int) -> Path:
    """Build the wheel; ninja goes on from the objects of an interrupted run."""
    source, log = fetch_source(requirement, build), build / 'build.log'
    finished = build / 'finished'
    shutil.rmtree(finished, ignore_errors=True)
    # pip's own cache would serve a wheel that was built against another PyTorch.
    options = ['-v', '--no-cache-dir', '--no-deps', '--no-build-isolation']
    command = [*PIP, 'wheel', *options, '-w', str(finished), str(source)]
    with log.open('wb') as file:
        # The compilation keeps the lock as well, should it outlive this process.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=build_environment(),
            pass_fds=[lock],
            start_new_session=True,
        )
        try:
            watch(process, log, source)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode != 0:
        lines = log.read_text(errors='replace').splitlines()
        # pip ends with many lines of its own; the cause stands further up.
        causes = [line for line in lines if re.search('error:', line, re.I)]
        shown = '\n'.join((causes or lines[-25:])[:25])
        sys.exit(f'{shown}\nCompiling {requirement} failed; the whole log is in {log}')
    (wheel,) = finished.glob('*.whl')
    return wheel


def cached_wheel(requirement: str) -> Path:
    """The wheel for this environment, compiled if no earlier run has left it."""
    key = wheel_key(requirement, visible_gpu_arch())
    wheels, build = cache_dir() / 'wheels' / key, cache_dir() / 'build' / key
    with locked(cache_dir() / 'build' / f'{key}.lock') as lock:
        for wheel in wheels.glob('*.whl'):
            print(f'  {requirement}: taken from {wheels}', flush=True)
            return wheel
        print(
            f'  {requirement}: compiling its operators, once for this PyTorch and '
            'Python; about ten minutes on two cores',
            flush=True,
        )
        build.mkdir(parents=True, exist_ok=True)
        wheel = compile_wheel(requirement, build, lock)
        wheels.mkdir(parents=True, exist_ok=True)
        kept = wheels / wheel.name
        # One rename within one file system: the wheel is there whole or not at all.
        os.replace(str(wheel), str(kept))
        shutil.rmtree(build, ignore_errors=True)
        return kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('requirement', help='such as mmcv==2.1.0')
    requirement = parser.parse_args(arguments).requirement
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    wheel = cached_wheel(requirement)
    options = ['-qq', '--no-deps', '--force-reinstall']
    subprocess.run([*PIP, 'install', *options, str(wheel)], check=True)


if __name__ == '__main__':
    main()
