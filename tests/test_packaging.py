from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools.archive_util import unpack_archive

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ('.*', 'build', 'dist', '*.egg-info', 'work_dirs', 'data', '__pycache__')
CONFIG = 'digits/retinanet_r18_fpn_50e_digits.py'
ZOO_NAME = 'retinanet/retinanet_r50_fpn_ema-1x_coco.py'

RESOLVE = """
import pathlib, sys
import mmselfdistill
from mmengine.config import Config
from mmengine.hub import get_config

config, zoo_name, checkout = sys.argv[1:]
pathlib.Path('derived.py').write_text(f'_base_ = {"mmselfdistill::" + config!r}\\n')
derived = Config.fromfile('derived.py')
assert derived.to_dict() == Config.fromfile(f'{checkout}/configs/{config}').to_dict()
zoo = get_config('mmselfdistill::' + zoo_name)
assert zoo.to_dict() == Config.fromfile(f'{checkout}/configs/{zoo_name}').to_dict()
print(pathlib.Path(mmselfdistill.__file__).parent)
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=str(cwd),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: object, cwd: Path) -> str:
    options = ('--no-deps', '--no-build-isolation', '--no-index')
    return run(sys.executable, '-m', 'pip', *arguments, *options, cwd=cwd)


def files_below(folder: Path) -> set[str]:
    found = (path for path in folder.rglob('*') if path.is_file())
    return {str(p.relative_to(ROOT)) for p in found if '__pycache__' not in p.parts}


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp('checkout') / 'mmselfdistill'
    shutil.copytree(str(ROOT), str(copy), ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope='module')
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both are complete."""
    work = tmp_path_factory.mktemp('wheel')
    run(sys.executable, 'setup.py', '-q', 'sdist', '-d', work / 'sdist', cwd=checkout)
    (archive,) = (work / 'sdist').glob('*.tar.gz')
    unpack_archive(str(archive), str(work / 'source'))
    (source,) = (work / 'source').iterdir()
    pip('wheel', '-w', work / 'dist', source, cwd=work)
    (built,) = (work / 'dist').glob('*.whl')
    return built


def clean_environment(folder: Path) -> Path:
    """A venv that sees the frameworks installed here, and nothing of the checkout.

    The editable install's own .pth is not read: only a site directory's are.
    """
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    (site,) = folder.glob('lib/python*/site-packages')
    (site / 'frameworks.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return site


def test_wheel_holds_configs_tools_and_index(wheel: Path) -> None:
    expected = files_below(ROOT / 'configs') | files_below(ROOT / 'tools')
    prefix = 'mmselfdistill/.mim/'
    names = zipfile.ZipFile(str(wheel)).namelist()
    shipped = {n[len(prefix) :] for n in names if n.startswith(prefix)}
    assert shipped == expected | {'model-index.yml'}
    assert 'mmselfdistill/py.typed' in names
    assert not any(name.startswith(('tests/', 'tools/', 'configs/')) for name in names)


def test_wheel_requires_nothing(wheel: Path) -> None:
    archive = zipfile.ZipFile(str(wheel))
    (name,) = (n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))
    metadata = archive.read(name).decode()
    required = re.findall(r'^Requires-Dist: (.*)$', metadata, re.M)
    assert [line for line in required if 'extra ==' not in line] == []
    extras = set(re.findall(r'^Provides-Extra: (.*)$', metadata, re.M))
    assert extras == {'openmmlab', 'onedl', 'dev', 'docs'}
    assert 'Requires-Python: >=3.8' in metadata


def test_configs_are_found_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site = clean_environment(tmp_path / 'venv')
    python = tmp_path / 'venv' / 'bin' / 'python'
    pip('--python', python, 'install', wheel, cwd=tmp_path)
    assert [p.name.split('-')[0] for p in site.glob('*.dist-info')] == ['mmselfdistill']
    output = run(python, '-c', RESOLVE, CONFIG, ZOO_NAME, ROOT, cwd=tmp_path)
    assert output.splitlines()[-1] == str(site / 'mmselfdistill')


def test_configs_are_found_from_an_editable_install(
    checkout: Path, tmp_path: Path
) -> None:
    clean_environment(tmp_path / 'venv')
    python = tmp_path / 'venv' / 'bin' / 'python'
    for _ in range(2):
        pip('--python', python, 'install', '-e', checkout, cwd=tmp_path)
    output = run(python, '-c', RESOLVE, CONFIG, ZOO_NAME, ROOT, cwd=tmp_path)
    assert output.splitlines()[-1] == str(checkout / 'mmselfdistill')
    assert (checkout / 'mmselfdistill/.mim/configs').resolve() == checkout / 'configs'


def test_model_index_names_every_family_and_config() -> None:
    metafiles = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('configs/*/*.yml'))
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': metafiles}
    models = [
        model
        for metafile in metafiles
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']
    ]
    named = [model['Config'] for model in models]
    training = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob('configs/*/*.py')
        if not path.parent.name.startswith('_')
    }
    assert sorted(named) == sorted(training)
