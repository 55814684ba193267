"""The one reduction of all losses: what counts, and what it is divided by."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from mmselfdistill.losses.common import reduced


def divergence(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize('shape', [(1,), (7,), (2, 3, 4)], ids=str)
def test_is_a_mean_without_weights(shape: tuple[int, ...]) -> None:
    values = divergence(*shape)
    assert reduced(values).item() == pytest.approx(values.numpy().mean())


@pytest.mark.parametrize('shape', [(7,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize('scale', [1.0, 0.01], ids=['many', 'below_one'])
def test_divides_by_the_weights_or_by_a_norm_of_at_least_one(
    shape: tuple[int, ...], scale: float
) -> None:
    values, weight = divergence(*shape), divergence(*shape).flip(0) * scale
    total = (values * weight).numpy().sum()
    expected = total / max(weight.numpy().sum(), 1)
    assert reduced(values, weight).item() == pytest.approx(expected)
    norm = torch.tensor(2.5 * scale)
    expected = total / max(2.5 * scale, 1)
    assert reduced(values, weight, norm).item() == pytest.approx(expected, rel=1e-6)
    expected = values.numpy().sum() / max(2.5 * scale, 1)
    assert reduced(values, None, norm).item() == pytest.approx(expected, rel=1e-6)


def test_boolean_weights_leave_rows_out() -> None:
    values = divergence(6)
    keep = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(reduced(values, keep), values[keep].sum() / 3)


def test_a_scalar_is_taken_as_it_is() -> None:
    value = torch.tensor(0.3, requires_grad=True)
    assert reduced(value, torch.zeros(5), torch.tensor(9.0)) is value


def test_no_row_is_a_zero_with_gradient() -> None:
    source = torch.ones(3, requires_grad=True)
    values = source.sum() * torch.ones(0)
    for weight in (None, torch.ones(0)):
        loss = reduced(values, weight)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, source, retain_graph=True)
        assert torch.equal(gradient, torch.zeros(3))


def test_what_counts_gets_no_gradient() -> None:
    values = divergence(4).requires_grad_()
    weight = divergence(4).requires_grad_()
    norm = torch.tensor(3.0, requires_grad=True)
    reduced(values, weight, norm).backward()
    assert weight.grad is None and norm.grad is None
    torch.testing.assert_close(values.grad, weight.detach() / 3)


def test_weights_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match=r'each of \(4,\), but .* \(4, 1\)'):
        reduced(divergence(4), torch.ones(4, 1))


@pytest.mark.parametrize('dtype', [torch.bool, torch.int64, torch.float16])
def test_weights_of_any_type_weigh_in_the_precision_of_the_loss(
    dtype: torch.dtype,
) -> None:
    values, keep = divergence(6), torch.tensor([1, 0, 1, 1, 0, 0]).to(dtype)
    kept = (values[0] + values[2] + values[3]).item()
    assert reduced(values, keep).dtype == values.dtype
    assert reduced(values, keep).item() == pytest.approx(kept / 3)
    norm = torch.tensor(5).to(dtype if dtype != torch.bool else torch.int64)
    assert reduced(values, keep, norm).item() == pytest.approx(kept / 5)


def test_nothing_that_counts_is_a_zero_with_gradient() -> None:
    values = divergence(2, 3, 4).requires_grad_()
    for weight in (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)):
        for norm in (None, torch.tensor(0.0)):
            loss = reduced(values, weight, norm)
            assert loss.item() == 0.0
            (gradient,) = torch.autograd.grad(loss, values)
            assert torch.equal(gradient, torch.zeros_like(values))


@pytest.mark.parametrize('shape', [(0,), (0, 3, 4), (2, 0, 4)], ids=str)
@pytest.mark.parametrize('norm', [None, 0.0, 2.0])
def test_no_row_is_zero_by_any_norm(shape: tuple[int, ...], norm: float | None) -> None:
    values = divergence(*shape).requires_grad_()
    loss = reduced(values, None, None if norm is None else torch.tensor(norm))
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize('shape', [(1,), (3, 4), (2, 4, 3), (2, 1, 3, 4), ()], ids=str)
def test_weights_that_would_broadcast_are_an_error(shape: tuple[int, ...]) -> None:
    # both shapes are named, the loss's first
    message = rf'{re.escape(str((2, 3, 4)))}.*{re.escape(str(shape))}'
    for norm in (None, torch.tensor(3.0)):
        with pytest.raises(ValueError, match=message):
            reduced(divergence(2, 3, 4), torch.ones(shape), norm)
