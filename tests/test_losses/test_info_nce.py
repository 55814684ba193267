from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from mmselfdistill.losses import InfoNCELoss, info_nce_loss

Array = NDArray[Any]

SHAPES = [(9, 4), (2, 6), (2, 3, 4, 5), (1, 6, 1, 7), (3, 2, 5, 5)]


def pair(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0.3, 1.0, (2, *shape)))


def positions(features: Tensor) -> list[Array]:
    """List the unit vectors, image by image, row by row."""
    maps = features.numpy()
    if maps.ndim == 2:
        vectors = list(maps)
    else:
        n, _, h, w = maps.shape
        vectors = [
            maps[i, :, y, x] for i in range(n) for y in range(h) for x in range(w)
        ]
    return [vector / np.linalg.norm(vector) for vector in vectors]


def info_nce(queries: list[Array], keys: list[Array], temperature: float) -> float:
    total = 0.0
    for i, query in enumerate(queries):
        similarities = [query @ key / temperature for key in keys]
        total += logsumexp(similarities) - similarities[i]
    return total / len(queries)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_is_the_gap_of_two_contrasts(
    shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = pair(shape)
    loss = info_nce_loss(student, teacher, temperature=temperature)
    s, t = positions(student), positions(teacher)
    expected = info_nce(s, t, temperature) - info_nce(t, t, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('max_positions', [2, 3, 7, 39, 40, 41])
def test_takes_evenly_spaced_positions_with_both_ends(max_positions: int) -> None:
    student, teacher = pair((2, 3, 4, 5))
    loss = info_nce_loss(student, teacher, max_positions=max_positions)
    count = min(max_positions, 40)
    chosen = np.floor(np.linspace(0, 39, count) + 1e-9).astype(int)
    assert len(set(chosen)) == count
    s, t = ([positions(x)[i] for i in chosen] for x in (student, teacher))
    expected = info_nce(s, t, 0.1) - info_nce(t, t, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_width_that_the_step_divides_is_still_covered() -> None:
    # 4 * 64 * 64 positions, 256 of them: a step of 64 would see one column only
    student = torch.zeros(4, 8, 64, 64).normal_().requires_grad_()
    teacher = torch.zeros(4, 8, 64, 64).normal_()
    info_nce_loss(student, teacher, max_positions=256).backward()
    seen = student.grad.ne(0).any(1)
    assert seen.sum() == 256
    assert seen.any(0).any(0).all(), 'every column'
    assert seen.any(2).any(0).all(), 'every row'


def test_draws_no_random_number() -> None:
    student, teacher = pair((2, 3, 16, 16))
    state = torch.get_rng_state()
    values = [info_nce_loss(student, teacher, max_positions=50) for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(torch.get_rng_state(), state)


def test_length_of_a_feature_does_not_matter() -> None:
    student, teacher = pair((2, 3, 4, 5))
    lengths = torch.rand(2, 1, 4, 5, dtype=torch.float64) * 100 + 1
    torch.testing.assert_close(
        info_nce_loss(student * lengths, teacher),
        info_nce_loss(student, teacher),
        rtol=1e-4,
        atol=1e-6,
    )


def test_gap_does_not_depend_on_repeating_the_batch() -> None:
    student, teacher = pair((2, 3, 4, 5))
    repeated = (x.repeat(3, 1, 1, 1) for x in (student, teacher))
    torch.testing.assert_close(
        info_nce_loss(*repeated), info_nce_loss(student, teacher)
    )


def test_unrelated_features_lose_the_whole_bound() -> None:
    # K orthogonal positions: the teacher tells log K of itself, and a student
    # that is the same everywhere tells nothing
    teacher = torch.eye(16)
    student = torch.ones(16, 16)
    loss = info_nce_loss(student, teacher, temperature=0.01)
    assert loss.item() == pytest.approx(math.log(16), abs=1e-4)


def test_positions_without_features_stay_finite() -> None:
    student, teacher = pair((2, 3, 4, 5)).float()
    student[:, :, 0] = 0
    student.requires_grad_()
    InfoNCELoss()(student, teacher).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3
