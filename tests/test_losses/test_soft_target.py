from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, rel_entr, softmax
from torch import Tensor

from mmselfdistill.losses import (
    SoftTargetLoss,
    pseudo_label_loss,
    soft_target_loss,
)
from mmselfdistill.losses.common import _PIECE, reduced

sys.path.append(str(Path(__file__).parents[2]))

from tools.benchmarks.memory import peak_bytes

Array = NDArray[Any]

SHAPES = [(1, 2), (6, 1), (5, 11), (2, 3, 4, 5), (1, 19, 1, 7)]
every_shape = pytest.mark.parametrize('shape', SHAPES, ids=str)


def pair(shape: tuple[int, ...], scale: float = 3.0) -> tuple[Array, Array]:
    student, teacher = np.random.default_rng(0).normal(0, scale, (2, *shape))
    return student, teacher


def tensors(*arrays: Array) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def softmax_kl(student: Array, teacher: Array, temperature: float) -> Array:
    p, q = softmax(teacher / temperature, 1), softmax(student / temperature, 1)
    return temperature**2 * rel_entr(p, q).sum(1)


def sigmoid_kl(
    student: Array, teacher: Array, temperature: float, beta: float
) -> Array:
    p, q = expit(teacher / temperature), expit(student / temperature)
    off_p, off_q = expit(-teacher / temperature), expit(-student / temperature)
    kl = rel_entr(p, q) + rel_entr(off_p, off_q)
    return temperature**2 * (np.abs(p - q) ** beta * kl).sum(1)


def average(
    student: Tensor,
    teacher: Tensor,
    *,
    over: str = 'positions',
    valid: Tensor | None = None,
    **args: Any,
) -> Tensor:
    """Reduce the loss as sites do: over positions, or over the teacher's positives."""
    rows = soft_target_loss(student, teacher, **args)
    if over == 'positions':
        return reduced(rows, valid)
    if args.get('kind', 'softmax') == 'sigmoid':
        count = teacher.detach().amax(1).sigmoid()
    else:
        count = 1 - teacher.detach().softmax(1)[:, -1]
    weight = None if valid is None else valid.to(count)
    return reduced(rows, weight, (count if weight is None else count * weight).sum())


@every_shape
@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_softmax_is_the_mean_divergence_of_positions(
    shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = pair(shape)
    loss = average(*tensors(student, teacher), temperature=temperature)
    expected = softmax_kl(student, teacher, temperature).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@every_shape
@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('beta', [0.0, 1.0, 2.0, 0.5])
def test_sigmoid_sums_classes_and_averages_positions(
    shape: tuple[int, ...], temperature: float, beta: float
) -> None:
    student, teacher = pair(shape)
    loss = average(
        *tensors(student, teacher),
        temperature=temperature,
        beta=beta,
        kind='sigmoid',
    )
    expected = sigmoid_kl(student, teacher, temperature, beta).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@every_shape
@pytest.mark.parametrize('bias', [0.0, -9.0], ids=['many', 'below_one'])
@pytest.mark.parametrize('masked', [False, True])
def test_sigmoid_over_positives_counts_the_teachers_largest(
    shape: tuple[int, ...], bias: float, masked: bool
) -> None:
    student, teacher = pair(shape)
    teacher = teacher + bias
    divergence = sigmoid_kl(student, teacher, 2.0, 1.0)
    count = expit(teacher).max(1)
    valid = np.arange(count.size).reshape(count.shape) % 3 != 1 if masked else None
    keep = valid if masked else slice(None)
    loss = average(
        *tensors(student, teacher),
        temperature=2.0,
        beta=1.0,
        kind='sigmoid',
        over='positives',
        valid=None if valid is None else torch.from_numpy(valid),
    )
    expected = divergence[keep].sum() / max(count[keep].sum(), 1)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_softmax_over_positives_counts_what_is_not_background() -> None:
    student, teacher = pair((40, 4))
    loss = average(*tensors(student, teacher), over='positives')
    count = softmax(teacher, 1)[:, :3].sum()
    assert count > 1
    expected = softmax_kl(student, teacher, 1.0).sum() / count
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_ignored_positions_count_neither_above_nor_below(activation: str) -> None:
    student, teacher = tensors(*pair((2, 3, 4, 5)))
    valid = torch.rand(2, 4, 5) > 0.4
    loss = average(student, teacher, kind=activation, valid=valid)
    rows_s, rows_t = (x.permute(0, 2, 3, 1)[valid] for x in (student, teacher))
    expected = average(rows_s, rows_t, kind=activation)
    torch.testing.assert_close(loss, expected)
    moved = student + 100 * ~valid.unsqueeze(1) * torch.arange(3).view(1, 3, 1, 1)
    torch.testing.assert_close(
        average(moved, teacher, kind=activation, valid=valid), loss
    )


def test_ignored_positions_get_no_gradient_and_all_ignored_is_zero() -> None:
    student, teacher = tensors(*pair((6, 5)))
    student.requires_grad_()
    valid = torch.tensor([1.0, 0, 1, 0, 0, 1])
    average(student, teacher, valid=valid).backward()
    assert ((student.grad != 0).any(1) == valid.bool()).all()
    for average_over in ('positions', 'positives'):
        loss = average(student, teacher, valid=torch.zeros(6), over=average_over)
        assert loss.item() == 0.0


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('average_over', ['positions', 'positives'])
def test_value_does_not_depend_on_batch_or_resolution(
    activation: str, average_over: str
) -> None:
    student, teacher = tensors(*pair((2, 3, 4, 5)))
    context: dict[str, Any] = {'kind': activation, 'over': average_over}
    loss = average(student, teacher, **context)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(average(*repeated, **context), loss)


def test_background_does_not_thin_out_the_positives() -> None:
    student, teacher = tensors(*pair((8, 3)))
    background = torch.full((10_000, 3), -20.0, dtype=torch.float64)
    loss, diluted = (
        average(s, t, kind='sigmoid', over='positives')
        for s, t in (
            (student, teacher),
            (torch.cat([student, background]), torch.cat([teacher, background])),
        )
    )
    torch.testing.assert_close(diluted, loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_gradient_keeps_its_size_at_any_temperature(activation: str) -> None:
    student, teacher = tensors(*pair((16, 10), scale=1.0))
    student.requires_grad_()

    def gradient(temperature: float) -> Tensor:
        loss = average(student, teacher, temperature=temperature, kind=activation)
        return torch.autograd.grad(loss, student)[0]

    # to first order in 1/T, softmax(z / T) is linear in the centred logits
    difference = (student - teacher).detach()
    if activation == 'softmax':
        limit = (difference - difference.mean(1, keepdim=True)) / 10 / 16
    else:
        limit = difference / 4 / 16
    torch.testing.assert_close(gradient(1e4), limit, rtol=1e-3, atol=1e-7)
    for temperature in (1.0, 2.0, 8.0, 64.0):
        ratio = gradient(temperature).norm() / limit.norm()
        assert 0.5 < ratio < 2.0


def test_confident_elements_do_not_cancel_in_float32() -> None:
    student, teacher = torch.tensor([[18.0, -18.0]]), torch.tensor([[20.0, -20.0]])
    loss = average(student, teacher, kind='sigmoid')
    expected = sigmoid_kl(student.double().numpy(), teacher.double().numpy(), 1.0, 0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_classes_padded_with_minus_infinity_are_as_good_as_absent(
    activation: str, temperature: float
) -> None:
    student, teacher = tensors(*pair((5, 6)))
    kwargs: dict[str, Any] = {'kind': activation, 'temperature': temperature}
    expected = average(student[:, :4], teacher[:, :4], **kwargs)
    padding = torch.arange(6) >= 4
    student = student.float().masked_fill(padding, -torch.inf).requires_grad_()
    teacher = teacher.float().masked_fill(padding, -torch.inf)
    loss = average(student, teacher, **kwargs)
    torch.testing.assert_close(loss, expected.float())
    loss.backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, 4:] == 0).all()


@pytest.mark.parametrize('beta', [0.25, 1.0, 1.5])
def test_focal_factor_has_a_finite_gradient_where_one_element_agrees(
    beta: float,
) -> None:
    teacher = torch.tensor([[1.0, -2.0, 0.5]])
    student = torch.tensor([[1.0, -1.0, 0.5]], requires_grad=True)
    average(student, teacher, beta=beta, kind='sigmoid').backward()
    assert student.grad.isfinite().all()
    assert student.grad[0, 1] != 0


def test_dense_head_keeps_one_tensor_for_the_backward_pass() -> None:
    student, teacher = tensors(*pair((7, 5)))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        average(student.requires_grad_(), teacher, beta=1.0, kind='sigmoid')
    assert sum(x.numel() for x in kept if x.shape == student.shape) == student.numel()


@every_shape
@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_a_sharpened_target_is_surer_of_the_same_class(
    shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = pair(shape)
    loss = soft_target_loss(
        *tensors(student, teacher), temperature=temperature, sharpen=2.0
    )
    p, q = softmax(teacher / temperature, 1), softmax(student / temperature, 1)
    target = p**2 / (p**2).sum(1, keepdims=True)
    expected = temperature**2 * (target * (np.log(p) - np.log(q))).sum(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_a_sharpened_target_draws_and_is_zero_at_equality(kind: str) -> None:
    student, teacher = tensors(*pair((6, 5)))
    student.requires_grad_()
    loss = soft_target_loss(student, teacher, kind=kind, sharpen=3.0)
    (slope,) = torch.autograd.grad(loss.sum(), student)
    make = torch.sigmoid if kind == 'sigmoid' else lambda x: torch.softmax(x, 1)
    torch.testing.assert_close(slope, (make(student) - make(3 * teacher)).detach())
    for beta in (0.0, 1.0):
        same = soft_target_loss(teacher, teacher, kind=kind, beta=beta, sharpen=3.0)
        assert (same == 0).all()


def test_the_sharpest_target_is_a_pseudo_label() -> None:
    student, teacher = tensors(*pair((2, 7, 4, 5)))
    loss = soft_target_loss(student, teacher, sharpen=1e5)
    torch.testing.assert_close(loss, pseudo_label_loss(student, teacher, threshold=0.0))


@pytest.mark.parametrize('sharpen', [1.25, 2.0])
def test_a_module_sharpens_its_target(sharpen: float) -> None:
    student, teacher = pair((6, 5))
    module = SoftTargetLoss(temperature=3.0, sharpen=sharpen)
    p, q = softmax(teacher / 3, 1), softmax(student / 3, 1)
    target = p**sharpen / (p**sharpen).sum(1, keepdims=True)
    expected = 9 * (target * (np.log(p) - np.log(q))).sum(1)
    np.testing.assert_allclose(module(*tensors(student, teacher)), expected)


def test_sharpening_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r'^sharpen: expected a number >= 1, .* 0\.5'):
        SoftTargetLoss(sharpen=0.5)


def test_float_weights_weigh() -> None:
    student, teacher = tensors(*pair((3, 5)))
    weights = torch.tensor([2.0, 0.5, 1.0])
    rows = [average(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    expected = (2 * rows[0] + 0.5 * rows[1] + rows[2]) / 3.5
    torch.testing.assert_close(average(student, teacher, valid=weights), expected)


def test_a_row_is_one_number_and_so_is_a_pixel() -> None:
    student, teacher = tensors(*pair((2, 3, 4, 5)))
    assert soft_target_loss(student, teacher).shape == (2, 4, 5)
    flat = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in (student, teacher))
    rows = soft_target_loss(*flat, kind='sigmoid')
    assert torch.equal(
        rows, soft_target_loss(student, teacher, kind='sigmoid').flatten()
    )


@pytest.mark.parametrize('kind', ['bins', 'offsets', 'mask', 'softmx'])
def test_another_kind_is_refused_by_name(kind: str) -> None:
    student, teacher = tensors(*pair((2, 4)))
    message = f"^SoftTargetLoss takes 'softmax' or 'sigmoid', but the site is '{kind}'"
    with pytest.raises(ValueError, match=message):
        SoftTargetLoss()(student, teacher, kind=kind)


def test_weights_of_another_shape_are_refused() -> None:
    student, teacher = tensors(*pair((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r'each of \(2, 4, 5\), but .* \(2,\)'):
        average(student, teacher, valid=torch.ones(2))


def test_large_maps_are_computed_in_pieces_that_agree_with_the_formula() -> None:
    # three pieces, of which the last one has 5 elements
    student, teacher = pair((2 * _PIECE + 5, 1))
    given = torch.tensor(student, requires_grad=True)
    loss = soft_target_loss(given, torch.tensor(teacher), kind='sigmoid')
    expected = rel_entr(expit(teacher), expit(student))
    expected += rel_entr(expit(-teacher), expit(-student))
    np.testing.assert_allclose(loss.detach(), expected[:, 0], atol=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    np.testing.assert_allclose(gradient, expit(student) - expit(teacher), atol=1e-9)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_needs_the_memory_of_few_maps(kind: str) -> None:
    student = torch.randn(2, 40, 80, 80, requires_grad=True)
    teacher = torch.randn(2, 40, 80, 80)
    with peak_bytes() as peak:
        soft_target_loss(student, teacher, kind=kind).mean().backward()
    # the slope that is kept, the gradient, and one more
    assert peak[0] < 3.3 * student.numel() * 4
