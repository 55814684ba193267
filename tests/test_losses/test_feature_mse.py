import numpy as np
import pytest
import torch

from mmselfdistill.losses import feature_mse_loss

SHAPES = [(9, 4), (1, 6), (2, 3, 4, 5), (1, 6, 1, 7), (3, 2, 8, 8)]


def pair(shape):
    return torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (2, *shape)))


def normalized(values):
    values = values.numpy()
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_is_the_mse_of_slices_normalised_one_by_one(shape):
    student, teacher = pair(shape)
    if len(shape) == 4:
        student_slices, teacher_slices = student.flatten(0, 1), teacher.flatten(0, 1)
    else:
        student_slices, teacher_slices = student, teacher
    errors = [
        np.mean((normalized(s) - normalized(t)) ** 2)
        for s, t in zip(student_slices, teacher_slices)
    ]
    loss = feature_mse_loss(student, teacher)
    assert loss.item() == pytest.approx(np.mean(errors), abs=1e-5)


def test_is_the_mse_of_torch_instance_norm_on_maps():
    student, teacher = pair((2, 3, 8, 8))
    norm = torch.nn.InstanceNorm2d(3, eps=1e-6).double()
    expected = torch.nn.functional.mse_loss(norm(student), norm(teacher))
    torch.testing.assert_close(feature_mse_loss(student, teacher), expected)


def test_scale_of_a_network_does_not_make_it_large():
    student, teacher = pair((2, 3, 4, 5))
    loss = feature_mse_loss(student, teacher)
    torch.testing.assert_close(
        feature_mse_loss(student * 1e4 + 300, teacher * 1e4), loss, rtol=1e-5, atol=0
    )
    assert feature_mse_loss(-teacher, teacher).item() == pytest.approx(4.0, abs=1e-5)


def test_each_image_has_its_own_statistics():
    student, teacher = pair((2, 3, 4, 5))
    alone = [feature_mse_loss(student[i : i + 1], teacher[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(feature_mse_loss(student, teacher), sum(alone) / 2)


def test_value_does_not_depend_on_batch_or_resolution():
    student, teacher = pair((2, 3, 4, 5))
    loss = feature_mse_loss(student, teacher)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(feature_mse_loss(*repeated), loss)


def test_dead_channels_and_single_pixels_stay_finite():
    student, teacher = pair((2, 3, 4, 5)).float()
    student[:, 0] = 0
    student.requires_grad_()
    feature_mse_loss(student, teacher).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    assert feature_mse_loss(*pair((2, 3, 1, 1))).item() == 0.0
