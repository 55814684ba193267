"""The pages build as a site, with every public function and its equation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmselfdistill
import mmselfdistill.losses

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('site')
    # what is imported for its docstrings must be this checkout
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going']
        + ['-d', str(out / 'doctrees'), str(ROOT / 'docs'), str(out / 'html')],
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out / 'html'


def test_every_page_is_built(site: Path) -> None:
    pages = {path.stem for path in (ROOT / 'docs').glob('*.md')}
    assert {path.stem for path in site.glob('*.html')} == pages | {'genindex', 'search'}


def test_the_reference_has_all_that_is_public(site: Path) -> None:
    text = (site / 'api.html').read_text()
    described = set(re.findall(r'<dt [^>]*id="([\w.]+)"', text))
    hooks = {f'mmselfdistill.{x}' for x in mmselfdistill.__all__ if x[0] != '_'}
    losses = {f'mmselfdistill.losses.{x}' for x in mmselfdistill.losses.__all__}
    assert hooks | losses <= described
    assert 'mmselfdistill.testing.check_identity' in described


def test_equations_are_equations(site: Path) -> None:
    text = (site / 'api.html').read_text()
    assert r'\frac{T^2}{H W} \sum_{h, w}' in text
    # what no directive or role took is left as it was written
    assert ':math:' not in text and '.. math::' not in text
