from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from mmselfdistill.losses import pseudo_label_loss

Array = NDArray[Any]

SHAPES = [(1, 2), (60, 5), (2, 3, 4, 5), (1, 19, 1, 7)]
every_shape = pytest.mark.parametrize('shape', SHAPES, ids=str)


def pair(shape: tuple[int, ...], scale: float = 3.0) -> tuple[Array, Array]:
    student, teacher = np.random.default_rng(0).normal(0, scale, (2, *shape))
    return student, teacher


def loss_of(student: Array, teacher: Array, **settings: Any) -> Array:
    given = torch.from_numpy(student), torch.from_numpy(teacher)
    loss: Array = pseudo_label_loss(*given, **settings).numpy()
    return loss


def rows_of(logits: Array) -> Array:
    return np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])


@every_shape
@pytest.mark.parametrize('threshold', [0.0, 0.7, 0.95, 1.0])
def test_softmax_is_the_log_ratio_at_the_teachers_class_where_it_is_sure(
    shape: tuple[int, ...], threshold: float
) -> None:
    student, teacher = pair(shape)
    expected = []
    for s, t in zip(rows_of(student), rows_of(teacher)):
        p, q = softmax(t), softmax(s)
        k = p.argmax()
        expected.append(np.log(p[k] / q[k]) if p[k] >= threshold else 0.0)
    loss = loss_of(student, teacher, threshold=threshold)
    np.testing.assert_allclose(loss.ravel(), expected, rtol=1e-9, atol=1e-12)


@every_shape
@pytest.mark.parametrize('threshold', [0.5, 0.7, 0.95])
def test_sigmoid_sums_over_the_answers_of_which_the_teacher_is_sure(
    shape: tuple[int, ...], threshold: float
) -> None:
    student, teacher = pair(shape)
    expected = []
    for s, t in zip(rows_of(student), rows_of(teacher)):
        total = 0.0
        for p, q in zip(expit(t), expit(s)):
            a, b = (p, q) if p >= 0.5 else (1 - p, 1 - q)
            total += np.log(a / b) if a >= threshold else 0.0
        expected.append(total)
    loss = loss_of(student, teacher, kind='sigmoid', threshold=threshold)
    np.testing.assert_allclose(loss.ravel(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_gradient_is_that_of_hard_labels_where_the_teacher_is_sure(kind: str) -> None:
    given, teacher = (torch.from_numpy(x) for x in pair((60, 5)))
    student = given.requires_grad_()
    pseudo_label_loss(student, teacher, kind=kind, threshold=0.9).sum().backward()
    if kind == 'softmax':
        p, q = teacher.softmax(1), student.softmax(1)
        expected = q - torch.nn.functional.one_hot(p.argmax(1), 5)
        sure = (p.amax(1, keepdim=True) >= 0.9).expand(-1, 5)
    else:
        p, q = teacher.sigmoid(), student.sigmoid()
        expected = q - (p >= 0.5).to(q)
        sure = torch.maximum(p, 1 - p) >= 0.9
    assert 0 < sure.sum() < sure.numel()
    torch.testing.assert_close(student.grad, (expected * sure).detach())


def test_a_student_surer_than_its_teacher_is_below_zero() -> None:
    teacher = torch.tensor([[3.0, 0.0]])
    loss = pseudo_label_loss(2 * teacher, teacher, threshold=0.9)
    expected = torch.log1p(torch.tensor(-3.0).exp()) - torch.log1p(
        torch.tensor(-6.0).exp()
    )
    assert loss.item() == pytest.approx(-expected.item(), rel=1e-5)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_a_threshold_of_one_is_met_by_a_probability_of_one(kind: str) -> None:
    teacher = torch.tensor([[200.0, -200.0], [3.0, -3.0]])
    loss = pseudo_label_loss(torch.zeros(2, 2), teacher, kind=kind, threshold=1.0)
    # of each answer that is certain log(1 / 0.5)
    answers = 2 if kind == 'sigmoid' else 1
    assert loss.tolist() == pytest.approx([answers * math.log(2), 0.0])


def test_nothing_sure_is_zero_with_a_zero_gradient() -> None:
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = pseudo_label_loss(student, torch.zeros(2, 3, 4, 5))
    assert torch.equal(loss, torch.zeros(2, 4, 5))
    loss.sum().backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_classes_padded_with_minus_infinity_are_as_good_as_absent(kind: str) -> None:
    student, teacher = (torch.from_numpy(x).float() for x in pair((40, 6)))
    settings: dict[str, Any] = dict(kind=kind, threshold=0.8)
    expected = pseudo_label_loss(student[:, :4], teacher[:, :4], **settings)
    assert expected.any()
    padding = torch.arange(6) >= 4
    student = student.masked_fill(padding, -torch.inf).requires_grad_()
    loss = pseudo_label_loss(
        student, teacher.masked_fill(padding, -torch.inf), **settings
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert_finite_and_zero(student.grad, padding)


def assert_finite_and_zero(gradient: Tensor, padding: Tensor) -> None:
    assert gradient.isfinite().all()
    assert (gradient[:, padding] == 0).all()
