"""Install a whole stack into a virtual environment of this checkout.

    python3 tools/install.py [--stack openmmlab|onedl] [--torch VERSION]

Safe to repeat, takes up where it was interrupted, and does nothing when all is there.
Standard library only, and old syntax: any Python 3 gets far enough to say what is
missing.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 10), (3, 12))
VENVS = {'openmmlab': '.venv', 'onedl': '.venv-onedl'}
STAMP = 'mmselfdistill-installed'
BUILD_TOOLS = ('setuptools<81', 'wheel', 'ninja', 'psutil')
PROBE = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps(dict(
    path=sys.executable,
    version=list(sys.version_info[:2]),
    headers=os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')),
    venv=all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')),
)))
"""
VERIFY = """
import mmcv.ops, mmdet.models, mmseg.models, mmselfdistill
import mmcv, mmdet, mmengine, mmseg, torch
for module in torch, mmengine, mmcv, mmdet, mmseg, mmselfdistill:
    print('  {} {}'.format(module.__name__, module.__version__))
"""


def stop(sentence: str) -> NoReturn:
    """End with one sentence that says what to do."""
    sys.exit('mmselfdistill: ' + sentence)


def probe(command: str) -> Optional[Dict[str, Any]]:
    """What a Python is and has; None if it does not run (a version manager's shim)."""
    try:
        output = subprocess.check_output([command, '-c', PROBE], stderr=subprocess.PIPE)
        found = json.loads(output.decode())
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def find_python(candidates: Sequence[str]) -> str:
    """Path of the first candidate that is supported and can build extensions.

    Args:
        candidates (sequence of str): Commands, in order of preference.
    """
    seen, lacking = [], []  # type: List[str], List[str]
    for command in candidates:
        found = probe(command)
        if not found:
            continue
        version = '.'.join(str(part) for part in found['version'])
        if tuple(found['version']) not in SUPPORTED:
            seen.append(version)
        elif not found['venv']:
            lacking.append(f'python{version}-venv')
        elif not found['headers']:
            lacking.append(f'python{version}-dev (the header Python.h)')
        else:
            return str(found['path'])
    if lacking:
        stop(f'Python is there but incomplete: please install {lacking[0]}.')
    stop(
        'Python 3.10, 3.11 or 3.12 is needed and only {} was found: please install '
        'one of them, for example python3.11 with python3.11-venv and '
        'python3.11-dev.'.format(', '.join(sorted(set(seen))) or 'none')
    )


def find_compiler() -> str:
    """The C++ compiler: `CXX` if set, else the first usual name that runs."""
    chosen = os.environ.get('CXX')
    for name in [chosen] if chosen else ['c++', 'g++', 'clang++']:
        try:
            subprocess.check_output(
                name.split() + ['--version'], stderr=subprocess.PIPE
            )
            return name
        except (OSError, subprocess.CalledProcessError):
            continue
    stop(
        'a C++ compiler is needed to build mmcv and {}: please install one, for '
        'example g++ (the package build-essential on Debian and Ubuntu).'.format(
            f'CXX={chosen} does not run' if chosen else 'none was found'
        )
    )


def read_requirements(name: str) -> List[str]:
    """The lines of one file in requirements/, without comments."""
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def torch_requirement(given: str) -> str:
    """A bare version is pinned; anything else is a requirement as it stands."""
    return 'torch==' + given if given[:1].isdigit() else given


def content_key(stack: str, torch: str) -> str:
    """Hash of all that decides what is in the environment."""
    parts = [str(ROOT), stack, torch]
    files = [ROOT / 'setup.py', ROOT / 'pyproject.toml', Path(__file__)]
    files += sorted((ROOT / 'requirements').glob('*.txt'))
    parts += [path.read_text() for path in files]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def drop_half_installed(venv: Path) -> None:
    """Forget distributions that an interrupted pip left behind.

    pip writes INSTALLER after all other files of a distribution, and takes one
    without it for installed.
    """
    for info in venv.glob('lib/python*/site-packages/*.dist-info'):
        if not (info / 'INSTALLER').exists():
            shutil.rmtree(str(info))


def make_venv(venv: Path) -> None:
    """Create the environment unless a working one is there."""
    python = str(venv / 'bin' / 'python')
    found = probe(python)
    if found and tuple(found['version']) in SUPPORTED:
        has_pip = subprocess.call(
            [python, '-m', 'pip', '--version'],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if has_pip == 0:
            drop_half_installed(venv)
            return
    names = ['python{}.{}'.format(*version) for version in SUPPORTED]
    base = find_python([sys.executable] + names)
    subprocess.check_call([base, '-m', 'venv', '--clear', str(venv)])


def install(stack: str, torch: str, venv: Path) -> None:
    """Run the steps; each is quick when an earlier run has done it.

    Args:
        stack (str): 'openmmlab' or 'onedl'.
        torch (str): Requirement that PyTorch is installed by.
        venv (Path): The environment.
    """
    compiler = find_compiler()
    print(f'[1/5] {venv.name}: a virtual environment', flush=True)
    make_venv(venv)
    python = str(venv / 'bin' / 'python')
    env = dict(os.environ, CXX=compiler, PIP_DISABLE_PIP_VERSION_CHECK='1')
    # ninja is looked up on the path.
    env['PATH'] = str(venv / 'bin') + os.pathsep + env.get('PATH', '')

    def run(*arguments: str) -> None:
        subprocess.check_call([python] + list(arguments), cwd=str(ROOT), env=env)

    def pip(*arguments: str) -> None:
        # On a terminal pip's progress bars stay: PyTorch may be some gigabytes. In a
        # log only errors are worth a line.
        quiet = [] if sys.stdout.isatty() else ['-qq']
        run('-m', 'pip', 'install', *quiet, *arguments)

    print(f'[2/5] {torch} and what builds mmcv', flush=True)
    pip(torch, *BUILD_TOOLS)
    print('[3/5] libraries and tools for the tests', flush=True)
    names = ('libraries.txt', 'dev.txt', 'docs.txt')
    pip(*[line for name in names for line in read_requirements(name)])
    frameworks = read_requirements(stack + '.txt')
    (mmcv,) = [line for line in frameworks if 'mmcv==' in line]
    print(f'[4/5] {mmcv}', flush=True)
    run('tools/build_mmcv.py', mmcv)
    frameworks.remove(mmcv)
    print('[5/5] {} and this package'.format(', '.join(frameworks)), flush=True)
    # What they depend on is there: their own lists would replace the headless OpenCV.
    pip('--no-deps', '--no-build-isolation', *frameworks)
    pip('--no-deps', '--no-build-isolation', '-e', '.')
    print('They import together:', flush=True)
    run('-W', 'ignore', '-c', VERIFY)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(VENVS), default='openmmlab')
    parser.add_argument('--torch', default='2.13.0', help='version or requirement')
    args = parser.parse_args(arguments)
    venv, torch = ROOT / VENVS[args.stack], torch_requirement(args.torch)
    key, stamp = content_key(args.stack, torch), venv / STAMP
    if stamp.exists() and stamp.read_text() == key and probe(str(venv / 'bin/python')):
        return
    start = time.time()
    if stamp.exists():
        stamp.unlink()
    try:
        install(args.stack, torch, venv)
    except subprocess.CalledProcessError as error:
        stop(
            'the step above failed ({}); the same command takes up from there.'.format(
                ' '.join(str(part) for part in error.cmd[:5])
            )
        )
    except KeyboardInterrupt:
        stop('interrupted; the same command takes up from here.')
    stamp.write_text(key)
    print(f'Installed in {(time.time() - start) / 60:.1f} min.', flush=True)


if __name__ == '__main__':
    main()
