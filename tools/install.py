"""Install a whole stack into a virtual environment of this checkout.

    python3 tools/install.py [--stack openmmlab|onedl|oldest] [--torch VERSION]

Repeated, it goes on where it was interrupted: pip leaves what is installed, ninja what
is compiled of mmcv. Standard library only, and old syntax: any Python 3 gets far enough
to say what is missing.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Sequence

ROOT = Path(__file__).resolve().parent.parent
# the folder and the PyTorch of each stack, the oldest and the newest Python 3 it has
STACKS = {
    'openmmlab': ('.venv', '2.13.0', '10', '12'),
    'onedl': ('.venv-onedl', '2.13.0', '10', '12'),
    'oldest': ('.venv-oldest', '2.1.0', '8', '11'),
}
BUILD_TOOLS = ['setuptools<81', 'wheel', 'ninja', 'psutil']
ALONE = ['--no-deps', '--no-build-isolation']
PYTHONS = [sys.executable, 'python3.11', 'python3.10', 'python3.12']
SUITS = """
import ensurepip, os, sys, sysconfig, venv
headers = os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'))
least, most = map(int, sys.argv[1:])
sys.exit(not (headers and least <= sys.version_info[1] <= most))
"""
NO_PYTHON = (
    'Python 3.{} to 3.{} with venv and the header Python.h is needed: please '
    'install python3.11, python3.11-venv and python3.11-dev, for example.'
)
NO_COMPILER = 'A C++ compiler is needed: please install g++, for example, or set CXX.'
# what mmcv's binary depends on, besides its version
KEY = """
import os, sys, sysconfig, torch
gpu = 'forced' if os.environ.get('FORCE_CUDA') == '1' else 'cpu'
if torch.cuda.is_available():
    gpu = 'sm%d%d' % torch.cuda.get_device_capability()
if gpu != 'cpu':
    gpu = os.environ.get('TORCH_CUDA_ARCH_LIST') or gpu
python = 'cp%d%d' % sys.version_info[:2]
print('-'.join(['torch', torch.__version__, python, sysconfig.get_platform(), gpu]))
"""
# setuptools leaves out what would lie elsewhere
UNPACK = 'import setuptools.archive_util as a, sys; a.unpack_archive(*sys.argv[1:])'
IMPORTS = 'import mmcv.ops, mmdet.models, mmseg.models, mmselfdistill'


def runs(*command: str) -> bool:
    """Whether a command is there and ends well."""
    quiet = subprocess.DEVNULL
    found = shutil.which(command[0])
    return bool(found) and subprocess.call(command, stdout=quiet, stderr=quiet) == 0


def first(commands: Sequence[str], arguments: List[str], missing: str) -> str:
    """The first command that runs; without one, the end of this program."""
    return next((c for c in commands if runs(c, *arguments)), '') or sys.exit(missing)


def compile_wheel(command: List[str], log: Path, lock: int) -> None:
    """Run the compilation, and print how far it is.

    It ends by itself if this process is killed, and holds the lock until then.
    """
    with log.open('wb') as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=[lock])
    seen = 0
    while process.poll() is None:
        time.sleep(1)
        steps = re.findall(r'\[(\d+)/(\d+)\]', log.read_text(errors='replace'))
        if len(steps) > seen:
            seen = len(steps)
            print('  compiled {} of {}'.format(*steps[-1]), flush=True)
    if process.returncode != 0:
        # pip ends with many lines of its own; the cause stands further up
        text = log.read_text(errors='replace')
        causes = re.findall(r'.*error:.*', text, re.IGNORECASE)[:20]
        sys.exit('\n'.join([*causes, f'Compiling mmcv failed; the whole log: {log}']))


def mmcv_wheel(python: str, mmcv: str) -> Path:
    """The wheel for this PyTorch and Python: the one that is kept, or a new one."""
    key = subprocess.check_output([python, '-W', 'ignore', '-c', KEY]).decode().strip()
    key = re.sub(r'[^\w.+-]', '_', mmcv.replace('==', '-') + '-' + key)
    base = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    wheels, build = (Path(base, 'mmselfdistill', d, key) for d in ('wheels', 'build'))
    for folder in (wheels, build):
        folder.mkdir(parents=True, exist_ok=True)
    pip, source = [python, '-m', 'pip'], build / 'source'
    with open(f'{build}.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('  waiting: another process is compiling it', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(wheels.glob('*.whl')):
            print('  about ten minutes on two cores', flush=True)
            if not source.exists():
                options = ['-qq', '--no-binary', ':all:', '-d', str(build), mmcv]
                subprocess.check_call([*pip, 'download', *ALONE, *options])
                (sdist,) = build.glob('*.tar.gz')
                partial = str(build / 'partial')
                subprocess.check_call([python, '-c', UNPACK, str(sdist), partial])
                os.rename(partial, str(source))
            (root,) = source.iterdir()
            options = ['-v', '--no-cache-dir', '-w', str(build), str(root)]
            command = [*pip, 'wheel', *ALONE, *options]
            compile_wheel(command, build / 'build.log', lock.fileno())
            (wheel,) = build.glob('*.whl')
            os.rename(str(wheel), str(wheels / wheel.name))
        shutil.rmtree(str(build), ignore_errors=True)
    return next(wheels.glob('*.whl'))


def install(stack: str, torch: str, venv: Path) -> None:
    """Run the steps; each is quick when an earlier run has done it."""
    python = str(venv / 'bin' / 'python')
    if not runs(python, '-m', 'pip', '--version'):
        # next to it: an interrupted start is gone on with
        made_here = venv.with_name(venv.name + '.made')
        if venv.exists() and any(venv.iterdir()) and not made_here.exists():
            sys.exit(f'{venv} was not made by this tool, and has no pip: move it away.')
        suits = STACKS[stack][2:]
        base = first(PYTHONS, ['-c', SUITS, *suits], NO_PYTHON.format(*suits))
        made_here.touch()
        subprocess.check_call([base, '-m', 'venv', '--clear', str(venv)])
    for info in venv.glob('lib/python*/site-packages/*.dist-info'):
        # pip, interrupted, takes one for installed that lacks its last file
        if not (info / 'INSTALLER').exists():
            shutil.rmtree(str(info))

    def pip(*arguments: str) -> None:
        # a log is spared the progress bars
        quiet = [] if sys.stdout.isatty() else ['-qq']
        command = [python, '-m', 'pip', 'install', *quiet, *arguments]
        subprocess.check_call(command, cwd=str(ROOT))

    print(f'[1/3] {torch}, libraries, and what builds mmcv', flush=True)
    listed = ROOT / 'requirements' / f'{stack}.txt'
    lists = ['-r', 'requirements/libraries.txt', '-r', 'requirements/dev.txt']
    lists += ['-r', 'requirements/docs.txt', '-c', str(listed)]
    pip(torch, *BUILD_TOOLS, *lists)
    frameworks = listed.read_text().split()
    (mmcv,) = [each for each in frameworks if 'mmcv==' in each]
    frameworks.remove(mmcv)
    print(f'[2/3] {mmcv}', flush=True)
    pip(*ALONE, '--force-reinstall', str(mmcv_wheel(python, mmcv)))
    print(f'[3/3] {", ".join(frameworks)} and this package', flush=True)
    # with their own lists of libraries, OpenCV would need a screen's
    pip(*ALONE, *frameworks, '-e', '.')
    subprocess.check_call([python, '-W', 'ignore', '-c', IMPORTS])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(STACKS), default='openmmlab')
    parser.add_argument('--torch', default='', help='version or requirement')
    args = parser.parse_args()
    folder, torch = STACKS[args.stack][:2]
    venv, torch = ROOT / folder, args.torch or torch
    torch = f'torch=={torch}' if torch[:1].isdigit() else torch
    files = [ROOT / 'setup.py', Path(__file__), *(ROOT / 'requirements').glob('*.txt')]
    parts = [str(ROOT), args.stack, torch, *(f.read_text() for f in sorted(files))]
    key = hashlib.sha256('\0'.join(parts).encode()).hexdigest()
    stamp = venv / 'mmselfdistill-installed'
    # the Python that it was made with may be gone
    alive = runs(str(venv / 'bin' / 'python'), '-c', '')
    if alive and stamp.exists() and stamp.read_text() == key:
        return
    if stamp.exists():
        stamp.unlink()
    # of the compilation; without debug symbols it takes half the time
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2**31
    os.environ.setdefault('MAX_JOBS', str(max(1, min(os.cpu_count() or 1, memory))))
    os.environ.update(MMCV_WITH_OPS='1', CFLAGS=os.environ.get('CFLAGS', '') + ' -g0')
    os.environ['PATH'] = f'{venv}/bin{os.pathsep}' + os.environ.get('PATH', '')
    if 'CXX' not in os.environ:
        os.environ['CXX'] = first(['c++', 'g++', 'clang++'], ['--version'], NO_COMPILER)
    try:
        install(args.stack, torch, venv)
    except (subprocess.CalledProcessError, KeyboardInterrupt):
        sys.exit('The step above did not end; the same command goes on from there.')
    stamp.write_text(key)


if __name__ == '__main__':
    main()
