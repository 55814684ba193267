"""Install a whole stack into a virtual environment of this checkout.

    python3 tools/install.py [--stack openmmlab|onedl] [--torch VERSION]

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
from pathlib import Path
from typing import List, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENVS = {'openmmlab': '.venv', 'onedl': '.venv-onedl'}
BUILD_TOOLS = ['setuptools<81', 'wheel', 'ninja', 'psutil']
STAMP = 'mmselfdistill-installed'
ALONE = ['--no-deps', '--no-build-isolation']
SUITS = """
import ensurepip, os, sys, sysconfig, venv
headers = os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'))
sys.exit(not (headers and (3, 10) <= sys.version_info < (3, 13)))
"""
# what mmcv's binary depends on, besides its version
KEY = """
import os, sys, sysconfig, torch
gpu = 'forced' if os.environ.get('FORCE_CUDA') == '1' else 'cpu'
if torch.cuda.is_available():
    arch = 'sm%d%d' % torch.cuda.get_device_capability()
    gpu = os.environ.get('TORCH_CUDA_ARCH_LIST') or arch
python = 'cp%d%d' % sys.version_info[:2]
print('-'.join(['torch', torch.__version__, python, sysconfig.get_platform(), gpu]))
"""
# setuptools leaves out what would lie elsewhere
UNPACK = 'import setuptools.archive_util as a, sys; a.unpack_archive(*sys.argv[1:])'


def find_python(candidates: Sequence[str]) -> str:
    """The first candidate that is supported and can build extensions."""
    for command in candidates:
        found = shutil.which(command)
        if (
            found
            and subprocess.call([found, '-c', SUITS], stderr=subprocess.DEVNULL) == 0
        ):
            return found
    sys.exit(
        'Python 3.10, 3.11 or 3.12 with venv and the header Python.h is needed: please '
        'install python3.11, python3.11-venv and python3.11-dev, for example.'
    )


def find_compiler() -> str:
    """The C++ compiler: `CXX` if set, else the first usual name that is there."""
    chosen = os.environ.get('CXX')
    for name in [chosen] if chosen else ['c++', 'g++', 'clang++']:
        if shutil.which(name.split()[0]):
            return name
    reason = f'CXX={chosen} is not there' if chosen else 'none was found'
    sys.exit(
        f'A C++ compiler is needed, and {reason}: please install g++, for example.'
    )


def compile_wheel(command: List[str], log: Path, lock: int) -> None:
    """Run the compilation, and print a line for each object."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        pass_fds=[lock],
    )
    with log.open('w') as file:
        for line in process.stdout or []:
            file.write(line)
            step = re.search(r'\[(\d+)/(\d+)\]', line)
            if step:
                print('  compiled {} of {}'.format(*step.groups()), flush=True)
    if process.wait() != 0:
        # pip ends with many lines of its own; the cause stands further up
        causes = re.findall(r'.*error:.*', log.read_text(), re.IGNORECASE)[:20]
        sys.exit('\n'.join([*causes, f'Compiling mmcv failed; the whole log: {log}']))


def mmcv_wheel(python: str, mmcv: str) -> Path:
    """The wheel for this PyTorch and Python: the one that is kept, or a new one."""
    key = subprocess.check_output([python, '-W', 'ignore', '-c', KEY]).decode().strip()
    key = re.sub(r'[^\w.+-]', '_', mmcv.replace('==', '-') + '-' + key)
    cache = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    wheels = Path(cache, 'mmselfdistill', 'wheels', key)
    build = Path(cache, 'mmselfdistill', 'build', key)
    for folder in (wheels, build):
        folder.mkdir(parents=True, exist_ok=True)
    pip = [python, '-m', 'pip']
    with open(f'{build}.lock', 'w') as lock:
        # another checkout may be compiling it, or the rest of an interrupted run
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(wheels.glob('*.whl')):
            print('  about ten minutes on two cores', flush=True)
            source, partial = build / 'source', str(build / 'partial')
            if not source.exists():
                options = ['-qq', '--no-binary', ':all:', '-d', str(build), mmcv]
                subprocess.check_call([*pip, 'download', *ALONE, *options])
                (sdist,) = build.glob('*.tar.gz')
                subprocess.check_call([python, '-c', UNPACK, str(sdist), partial])
                os.rename(partial, str(source))
            (root,) = source.iterdir()
            options = ['-v', '--no-cache-dir', '-w', str(build), str(root)]
            command = [*pip, 'wheel', *ALONE, *options]
            compile_wheel(command, build / 'build.log', lock.fileno())
            (wheel,) = build.glob('*.whl')
            os.rename(str(wheel), str(wheels / wheel.name))
        shutil.rmtree(str(build))
    return next(wheels.glob('*.whl'))


def install(stack: str, torch: str, python: str) -> None:
    """Run the steps; each is quick when an earlier run has done it."""

    def pip(*arguments: str) -> None:
        # a log is spared the progress bars
        quiet = [] if sys.stdout.isatty() else ['-qq']
        command = [python, '-m', 'pip', 'install', *quiet, *arguments]
        subprocess.check_call(command, cwd=str(ROOT))

    print(f'[1/3] {torch}, libraries, and what builds mmcv', flush=True)
    lists = ['-r', 'requirements/libraries.txt', '-r', 'requirements/dev.txt']
    pip(torch, *BUILD_TOOLS, *lists)
    frameworks = (ROOT / 'requirements' / f'{stack}.txt').read_text().split()
    (mmcv,) = [each for each in frameworks if 'mmcv==' in each]
    print(f'[2/3] {mmcv}', flush=True)
    pip(*ALONE, '--force-reinstall', str(mmcv_wheel(python, mmcv)))
    frameworks.remove(mmcv)
    print(f'[3/3] {", ".join(frameworks)} and this package', flush=True)
    # with their own lists of libraries, OpenCV would need a screen's
    pip(*ALONE, *frameworks, '-e', '.')
    imports = 'import mmcv.ops, mmdet.models, mmseg.models, mmselfdistill'
    subprocess.check_call([python, '-W', 'ignore', '-c', imports])


def make_venv(venv: Path) -> None:
    """Create the environment unless a working one is there."""
    pip = [str(venv / 'bin' / 'python'), '-m', 'pip', '--version']
    if (
        not os.path.exists(pip[0])
        or subprocess.call(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        != 0
    ):
        names = [sys.executable, 'python3.11', 'python3.10', 'python3.12']
        subprocess.check_call([find_python(names), '-m', 'venv', '--clear', str(venv)])
    for info in venv.glob('lib/python*/site-packages/*.dist-info'):
        # pip, interrupted, takes one for installed that lacks its last file
        if not (info / 'INSTALLER').exists():
            shutil.rmtree(str(info))


def settings(venv: Path) -> None:
    """Set what the compilation reads from the environment; the user's own stays."""
    cores = os.cpu_count() or 1
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2**31
    os.environ.setdefault('MAX_JOBS', str(max(1, min(cores, memory))))
    # without debug symbols it takes half the time
    os.environ['CFLAGS'] = os.environ.get('CFLAGS', '') + ' -g0'
    os.environ.update(CXX=find_compiler(), MMCV_WITH_OPS='1')
    # ninja is looked up there
    os.environ['PATH'] = f'{venv / "bin"}{os.pathsep}{os.environ.get("PATH", "")}'


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(VENVS), default='openmmlab')
    parser.add_argument('--torch', default='2.13.0', help='version or requirement')
    args = parser.parse_args()
    venv = ROOT / VENVS[args.stack]
    torch = f'torch=={args.torch}' if args.torch[:1].isdigit() else args.torch
    files = [ROOT / 'setup.py', Path(__file__), *(ROOT / 'requirements').glob('*.txt')]
    parts = [str(ROOT), args.stack, torch, *(f.read_text() for f in sorted(files))]
    key, stamp = hashlib.sha256('\0'.join(parts).encode()).hexdigest(), venv / STAMP
    if stamp.exists() and stamp.read_text() == key:
        return
    try:
        settings(venv)
        make_venv(venv)
        install(args.stack, torch, str(venv / 'bin' / 'python'))
    except (subprocess.CalledProcessError, KeyboardInterrupt):
        sys.exit('The step above did not end; the same command goes on from there.')
    stamp.write_text(key)


if __name__ == '__main__':
    main()
