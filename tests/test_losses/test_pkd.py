from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from mmselfdistill.losses import pkd_loss

SHAPES = [(9, 4), (2, 1), (2, 3, 4, 5), (1, 6, 1, 7), (3, 2, 8, 8)]


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    student, teacher = np.random.default_rng(0).normal(1.0, 2.0, (2, *shape))
    return torch.from_numpy(student), torch.from_numpy(0.6 * teacher + 0.4 * student)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_is_one_minus_the_mean_correlation_of_channels(shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    correlations = [
        pearsonr(student[:, c].flatten(), teacher[:, c].flatten())[0]
        for c in range(shape[1])
    ]
    loss = pkd_loss(student, teacher)
    assert loss.item() == pytest.approx(1 - np.mean(correlations), abs=1e-5)


def test_is_blind_to_a_channels_offset_and_scale() -> None:
    student, teacher = pair((2, 3, 4, 5))
    scale = torch.tensor([1.0, 7.0, 100.0]).view(1, 3, 1, 1)
    offset = torch.tensor([0.0, -20.0, 5.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        pkd_loss(student * scale + offset, teacher),
        pkd_loss(student, teacher),
        rtol=1e-5,
        atol=0,
    )
    assert pkd_loss(teacher * scale + offset, teacher).item() < 1e-10


def test_opposite_features_give_two() -> None:
    _, teacher = pair((2, 3, 4, 5))
    assert pkd_loss(-teacher, teacher).item() == pytest.approx(2.0, abs=1e-5)


def test_value_does_not_depend_on_batch_or_resolution() -> None:
    student, teacher = pair((2, 3, 4, 5))
    loss = pkd_loss(student, teacher)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(pkd_loss(*repeated), loss)


def test_dead_channels_stay_finite() -> None:
    student, teacher = pair((2, 2, 4, 5))
    loss = pkd_loss(student, teacher)
    dead = torch.zeros(2, 1, 4, 5, dtype=torch.float64)
    with_dead = torch.cat([student, dead], 1).requires_grad_()
    both = pkd_loss(with_dead, torch.cat([teacher, dead], 1))
    torch.testing.assert_close(both, loss * 2 / 3)
    one = pkd_loss(with_dead, torch.cat([teacher, teacher[:, :1]], 1))
    torch.testing.assert_close(one, (loss * 2 + 0.5) / 3, rtol=1e-5, atol=0)
    one.backward()
    assert with_dead.grad.isfinite().all()
    assert with_dead.grad.abs().max() < 100


def test_one_position_has_no_correlation_to_speak_of() -> None:
    for shape in ((1, 5), (1, 5, 1, 1)):
        assert pkd_loss(*pair(shape)).item() == 0.0


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1, 1), (1, 3, 1, 2)], ids=str)
def test_two_positions_agree_or_are_opposite(shape: tuple[int, ...]) -> None:
    _, teacher = pair(shape)
    signs = torch.tensor([1.0, -1.0, -2.0]).view(1, 3, *[1] * (len(shape) - 2))
    loss = pkd_loss(signs * teacher, teacher)
    assert loss.item() == pytest.approx(4 / 3, abs=1e-5)


@pytest.mark.parametrize('shape', [(0, 5), (0, 5, 4, 6), (2, 5, 0, 6)], ids=str)
def test_no_position_is_zero(shape: tuple[int, ...]) -> None:
    student = torch.ones(shape, requires_grad=True)
    loss = pkd_loss(student, torch.ones(shape))
    assert loss.item() == 0.0
    loss.backward()
