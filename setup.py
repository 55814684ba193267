"""Packaging. The plugin requires nothing: it works with what its user has."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'model-index.yml')
EXTRAS = ('openmmlab', 'onedl', 'dev', 'docs')


class BuildWithMim(build_py):
    """Puts `SHIPPED` under `mmselfdistill/.mim`, where MMEngine looks for configs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            self.link_mim(ROOT / 'mmselfdistill' / '.mim')
        else:
            self.copy_mim(Path(self.build_lib) / 'mmselfdistill' / '.mim')

    def link_mim(self, mim: Path) -> None:
        mim.mkdir(exist_ok=True)
        for name in SHIPPED:
            link = mim / name
            # a copy of a checkout may have the files in place of the links
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            elif link.is_symlink() or link.exists():
                link.unlink()
            os.symlink(os.path.join('..', '..', name), str(link))

    def copy_mim(self, mim: Path) -> None:
        # `build/` outlives a build: what has been removed since must not be shipped.
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                leave = shutil.ignore_patterns('__pycache__', '*.pyc')
                shutil.copytree(source, mim / name, ignore=leave)
            else:
                shutil.copy2(source, mim / name)


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def version() -> str:
    text = (ROOT / 'mmselfdistill' / 'version.py').read_text()
    found = re.search(r"__version__ = '(.+)'", text)
    assert found, 'mmselfdistill/version.py names no version'
    return found.group(1)


setup(
    name='mmselfdistill',
    version=version(),
    description='Self-distillation for MMDetection and MMSegmentation by one hook',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmselfdistill', 'mmselfdistill.*']),
    package_data={'mmselfdistill': ['py.typed']},
    python_requires='>=3.8',
    install_requires=[],
    extras_require={name: requirements(name) for name in EXTRAS},
    cmdclass={'build_py': BuildWithMim},
    entry_points={'console_scripts': ['mmselfdistill = mmselfdistill.cli:main']},
    zip_safe=False,
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
