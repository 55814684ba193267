import numpy as np
import pytest
import torch
from scipy.special import expit, xlogy

from mmselfdistill.losses import mask_distill_loss

SHAPES = [(1, 1, 2, 2), (5, 1, 7, 3), (4, 28, 28), (3, 1, 5)]


def pair(shape):
    return np.random.default_rng(0).normal(0.0, 4.0, (2, *shape))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_is_cross_entropy_less_entropy(shape, temperature):
    student, teacher = pair(shape)
    m, q = expit(teacher / temperature), expit(student / temperature)
    cross_entropy = -(xlogy(m, q) + xlogy(1 - m, 1 - q)).mean()
    entropy = -(xlogy(m, m) + xlogy(1 - m, 1 - m)).mean()
    loss = mask_distill_loss(
        *torch.from_numpy(np.stack([student, teacher])), temperature=temperature
    )
    expected = temperature**2 * (cross_entropy - entropy)
    assert loss.item() == pytest.approx(expected, rel=1e-8)


def test_gradient_is_that_of_binary_cross_entropy_with_soft_labels():
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    student.requires_grad_()
    ours = torch.autograd.grad(mask_distill_loss(student, teacher), student)[0]
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        student, teacher.sigmoid()
    )
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, student)[0])


def test_channel_of_one_may_be_left_out():
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    assert torch.equal(
        mask_distill_loss(student, teacher),
        mask_distill_loss(student.squeeze(1), teacher.squeeze(1)),
    )


def test_value_does_not_depend_on_instances_or_resolution():
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)))
    loss = mask_distill_loss(student, teacher)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(mask_distill_loss(*repeated), loss)


def test_temperature_keeps_the_size_of_the_gradient():
    student, teacher = torch.from_numpy(pair((4, 1, 6, 6)) / 4)
    student.requires_grad_()

    def gradient(temperature):
        loss = mask_distill_loss(student, teacher, temperature=temperature)
        return torch.autograd.grad(loss, student)[0]

    limit = (student - teacher).detach() / 4 / student.numel()
    torch.testing.assert_close(gradient(1e4), limit, rtol=1e-3, atol=1e-8)
    for temperature in (1.0, 2.0, 10.0):
        assert 0.5 < gradient(temperature).norm() / limit.norm() < 2.0


def test_confidence_weighs_instances():
    student, teacher = torch.from_numpy(pair((4, 6, 6)))
    each = torch.stack(
        [mask_distill_loss(s[None], t[None]) for s, t in zip(student, teacher)]
    )
    for weights in ([2.0, 0.0, 1.0, 0.5], [0.25, 0.0, 0.5, 0.0]):
        confidence = torch.tensor(weights)
        loss = mask_distill_loss(student, teacher, confidence=confidence)
        expected = (each * confidence).sum() / confidence.sum().clamp(min=1)
        torch.testing.assert_close(loss, expected, check_dtype=False)
    with pytest.raises(ValueError, match='confidence'):
        mask_distill_loss(student, teacher, confidence=torch.ones(3))
