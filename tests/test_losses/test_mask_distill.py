from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, xlogy
from torch import Tensor

from mmselfdistill.losses import MaskDistillLoss, mask_distill_loss
from mmselfdistill.losses.common import reduced

Array = NDArray[Any]

SHAPES = [(1, 1, 2, 2), (5, 1, 7, 3), (4, 28, 28), (3, 1, 5)]


def pair(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).normal(0.0, 4.0, (2, *shape))


def average(
    student: Tensor, teacher: Tensor, confidence: Tensor | None = None, **args: Any
) -> Tensor:
    """Reduce the loss as sites do: over masks, by the teacher's confidence."""
    return reduced(mask_distill_loss(student, teacher, **args), confidence)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_is_cross_entropy_less_entropy(
    shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = pair(shape)
    m, q = expit(teacher / temperature), expit(student / temperature)
    cross_entropy = -(xlogy(m, q) + xlogy(1 - m, 1 - q)).mean()
    entropy = -(xlogy(m, m) + xlogy(1 - m, 1 - m)).mean()
    loss = average(
        *torch.from_numpy(np.stack([student, teacher])), temperature=temperature
    )
    expected = temperature**2 * (cross_entropy - entropy)
    assert loss.item() == pytest.approx(expected, rel=1e-8)


def test_gradient_is_that_of_binary_cross_entropy_with_soft_labels() -> None:
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    student.requires_grad_()
    ours = torch.autograd.grad(average(student, teacher), student)[0]
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        student, teacher.sigmoid()
    )
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, student)[0])


def test_channel_of_one_may_be_left_out() -> None:
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    assert torch.equal(
        average(student, teacher),
        average(student.squeeze(1), teacher.squeeze(1)),
    )


def test_value_does_not_depend_on_instances_or_resolution() -> None:
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    loss = average(student, teacher)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(average(*repeated), loss)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)) / 4)
    student.requires_grad_()

    def gradient(temperature: float) -> Tensor:
        loss = average(student, teacher, temperature=temperature)
        return torch.autograd.grad(loss, student)[0]

    limit = (student - teacher).detach() / 4 / student.numel()
    torch.testing.assert_close(gradient(1e4), limit, rtol=1e-3, atol=1e-8)
    for temperature in (1.0, 2.0, 10.0):
        assert 0.5 < gradient(temperature).norm() / limit.norm() < 2.0


def test_confidence_weighs_instances() -> None:
    student, teacher = torch.from_numpy(pair((4, 6, 6)))
    each = torch.stack([average(s[None], t[None]) for s, t in zip(student, teacher)])
    for weights in ([2.0, 0.0, 1.0, 0.5], [0.25, 0.0, 0.5, 0.0]):
        confidence = torch.tensor(weights)
        loss = average(student, teacher, confidence=confidence)
        expected = (each * confidence).sum() / confidence.sum().clamp(min=1)
        torch.testing.assert_close(loss, expected, check_dtype=False)
    with pytest.raises(ValueError, match=r'each of \(4,\), but .* \(3,\)'):
        average(student, teacher, confidence=torch.ones(3))


def test_another_kind_is_refused_by_name() -> None:
    masks = torch.ones(2, 3, 3)
    message = "^MaskDistillLoss takes 'mask', but the site is 'softmax'"
    with pytest.raises(ValueError, match=message):
        MaskDistillLoss()(masks, masks, kind='softmax')
