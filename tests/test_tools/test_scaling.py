"""The parts of an iteration that are measured one by one are those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import disturb

from tools.benchmarks.memory import peak_bytes
from tools.benchmarks.scaling import (
    AXES,
    DETECTOR,
    DETR,
    MORE,
    SEGMENTOR,
    Shares,
    growth,
    points,
)
from tools.benchmarks.subjects import make_subject

ROOT = Path(__file__).parents[2]

RETINANET = str(ROOT / 'configs/digits/retinanet_r18_fpn_50e_digits.py')


def test_terms_alone_are_the_terms_of_an_iteration() -> None:
    shares = Shares(make_subject(RETINANET, 64, 2))
    disturb(shares.teacher)
    shares.sides = shares.repeat()
    subject, distiller = shares.subject, shares.distiller
    distiller.teacher = shares.teacher
    distiller.attach()
    losses = subject.model(**subject.copied_batch(), mode='loss')
    distiller.detach()
    assert {term.name for term in shares.terms} == {
        *('features', 'logits', 'boxes'),
        *MORE,
    }
    for term in shares.terms:
        pairs = len(distiller.labeled.shapes[term.name])
        alone = shares.term(term) / pairs
        assert alone > 0
        torch.testing.assert_close(alone, losses[f'sd_{term.name}'].detach())


def test_the_smallest_batch_of_a_segmentor_trains() -> None:
    smallest = points(SEGMENTOR)['batch'][0]
    shares = Shares(smallest._replace(size=64, classes=19).subject())
    names = {term.name for term in shares.terms}
    assert names == {'features', 'logits', *MORE}


def test_queries_are_counted() -> None:
    point = points(DETR)['queries'][0]._replace(size=64, classes=20, queries=50)
    shares = Shares(point.subject())
    shapes = shares.distiller.labeled.shapes
    assert shapes['logits'] == ['50x20']


def test_levels_are_counted() -> None:
    fewest, *_, most = points(DETECTOR)['levels']
    for point in (fewest, most):
        shares = Shares(point._replace(size=64, classes=20).subject())
        assert len(shares.distiller.labeled.shapes['features']) == point.levels
    assert (fewest.levels, most.levels) == (3, 6)


def test_growth_is_the_exponent() -> None:
    assert growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_an_axis_varies_one_thing() -> None:
    axes = points(DETECTOR)
    assert {name: len(along) for name, along in axes.items()} == {
        name: len(values) for name, values in AXES[DETECTOR].items()
    }
    for name, along in axes.items():
        values = [getattr(point, name) for point in along]
        assert values == sorted(values)
        assert len({point._replace(**{name: 0}) for point in along}) == 1
    # the place that all axes share is measured once
    every = [point for along in axes.values() for point in along]
    assert len(every) - len(set(every)) == len(axes) - 1


def test_the_peak_counts_what_lives_at_one_time() -> None:
    x = torch.zeros(1000)
    with peak_bytes() as peak:
        y = x.exp()  # 4000 bytes
        z = y.neg()  # 8000
        y.add_(z)  # in place: no more
        del y, z
        x.view(10, 100).t().contiguous()  # 4000 again; a view has no memory
    assert peak == [8000]
