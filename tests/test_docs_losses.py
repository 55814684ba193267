"""docs/losses.md says what the docstrings of the losses and the families say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_docs import code, documented_terms, rows

from mmselfdistill import losses

PAGE = (Path(__file__).parents[1] / 'docs/losses.md').read_text()
TABLE = {code(name): cells for name, *cells in rows(PAGE, 'What each computes')}


def bare(equation: str) -> str:
    """Write an equation in one way: spaces and the size of brackets are taste."""
    for old, new in ((r'\lvert', '|'), (r'\rvert', '|'), (r'\Vert', r'\|')):
        equation = equation.replace(old, new)
    return re.sub(r'\s|\\left|\\right|\\quad', '', equation)


def docstring(loss: str) -> str:
    name = re.sub(r'(?<=[a-z])(?=[A-Z])', '_', loss).lower()
    name = dict(PKDLoss='pkd_loss', FeatureMSELoss='feature_mse_loss').get(loss, name)
    name = dict(InfoNCELoss='info_nce_loss').get(loss, name)
    text = getattr(losses, name).__doc__
    assert text
    return str(text)


def test_each_loss_has_its_row() -> None:
    assert TABLE.keys() == {name for name in losses.__all__ if name.endswith('Loss')}


@pytest.mark.parametrize('loss', TABLE)
def test_equations_shapes_and_sources_are_the_docstrings(loss: str) -> None:
    equation, shapes, source = TABLE[loss]
    text = docstring(loss)
    equations = re.findall(r'\$(.+?)\$', equation)
    assert equations
    for each in equations:
        assert bare(each) in bare(text), each
    for shape in re.findall(r'\([A-Z].*?\)+(?=,|$)', shapes):
        assert shape in text, shape
    papers = re.findall(r'arXiv (\d{4}\.\d{5})', text)
    assert set(re.findall(r'\[(\d{4}\.\d{5})\]', source)) == set(papers)


def test_defaults_are_those_of_the_settings() -> None:
    shown = {
        (family, code(term)): (code(loss), float(code(weight)))
        for loss, term, weight, families in rows(
            PAGE, 'Which loss is the default where'
        )
        for family in families.split(', ')
    }
    assert shown == {
        (family, term): (cfg['type'], cfg['weight'])
        for family, terms in documented_terms().items()
        for term, cfg in terms.items()
    }
