from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmselfdistill.losses import FeatureMSELoss, feature_mse_loss

Array = NDArray[Any]

SHAPES = [(9, 4), (1, 6), (2, 3, 4, 5), (1, 6, 1, 7), (3, 2, 8, 8)]


def pair(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (2, *shape)))


def normalized(values: Tensor) -> Array:
    array: Array = values.numpy()
    return (array - array.mean()) / array.std()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_is_the_mse_of_slices_normalised_one_by_one(shape: tuple[int, ...]) -> None:
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


def test_is_the_mse_of_torch_instance_norm_on_maps() -> None:
    student, teacher = pair((2, 3, 8, 8))
    norm = torch.nn.InstanceNorm2d(3, eps=1e-6).double()
    expected = torch.nn.functional.mse_loss(norm(student), norm(teacher))
    torch.testing.assert_close(feature_mse_loss(student, teacher), expected)


def test_scale_of_a_network_does_not_make_it_large() -> None:
    student, teacher = pair((2, 3, 4, 5))
    loss = feature_mse_loss(student, teacher)
    torch.testing.assert_close(
        feature_mse_loss(student * 1e4 + 300, teacher * 1e4), loss, rtol=1e-5, atol=0
    )
    assert feature_mse_loss(-teacher, teacher).item() == pytest.approx(4.0, abs=1e-5)


def test_each_image_has_its_own_statistics() -> None:
    student, teacher = pair((2, 3, 4, 5))
    alone = [feature_mse_loss(student[i : i + 1], teacher[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(feature_mse_loss(student, teacher), sum(alone) / 2)


def test_value_does_not_depend_on_batch_or_resolution() -> None:
    student, teacher = pair((2, 3, 4, 5))
    loss = feature_mse_loss(student, teacher)
    for repeats in ((3, 1, 1, 1), (1, 1, 2, 4)):
        repeated = (x.repeat(*repeats) for x in (student, teacher))
        torch.testing.assert_close(feature_mse_loss(*repeated), loss)


def test_dead_channels_and_single_pixels_stay_finite() -> None:
    student, teacher = pair((2, 3, 4, 5)).float()
    student[:, 0] = 0
    student.requires_grad_()
    feature_mse_loss(student, teacher).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    assert feature_mse_loss(*pair((2, 3, 1, 1))).item() == 0.0


@pytest.mark.parametrize('shape', [(9, 4), (2, 4, 3, 5)], ids=str)
def test_a_projector_begins_as_the_identity_and_learns(shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape).float()
    loss = FeatureMSELoss(projector=4)
    plain = feature_mse_loss(student, teacher)
    torch.testing.assert_close(loss(student, teacher), plain)
    # PyTorch 2.1 adds up in another order where a tensor lies elsewhere
    assert loss(teacher, teacher).item() < 1e-12
    loss(student, teacher).backward()
    assert loss.projector.grad.abs().max() > 0
    # a 1x1 convolution of the student alone
    with torch.no_grad():
        loss.projector.copy_(2 * torch.eye(4).flip(0))
    torch.testing.assert_close(
        loss(student, teacher), feature_mse_loss(2 * student.flip(1), teacher)
    )


def test_one_projector_serves_levels_of_one_width_alone() -> None:
    loss = FeatureMSELoss(projector=4)
    assert [name for name, _ in loss.named_parameters()] == ['projector']
    assert list(FeatureMSELoss().parameters()) == []
    student, teacher = pair((2, 3, 4, 5))
    with pytest.raises(ValueError, match='it has 4 channels, but the site 3'):
        loss(student.float(), teacher.float())


@pytest.mark.parametrize('channels', [0, 2.5, True, 'many'])
def test_a_projector_is_a_number_of_channels(channels: Any) -> None:
    with pytest.raises(ValueError, match=r'^projector: expected'):
        FeatureMSELoss(projector=channels)


def test_a_projector_is_a_convolution_of_the_student_before_it_is_normalised() -> None:
    student, teacher = pair((2, 3, 4, 5))
    loss = FeatureMSELoss(projector=3).double()
    assert loss.projector is not None
    # no symmetric matrix: rows are outputs
    weight = torch.arange(9.0).view(3, 3).cos().double()
    loss.projector.data.copy_(weight)
    projected = torch.nn.functional.conv2d(student, weight[..., None, None])
    torch.testing.assert_close(
        loss(student, teacher), feature_mse_loss(projected, teacher)
    )
    rows = [x[:, :, 0, 0] for x in (student, teacher)]
    torch.testing.assert_close(
        loss(*rows), feature_mse_loss(rows[0] @ weight.T, rows[1])
    )


def test_rows_and_maps_share_one_projector() -> None:
    loss = FeatureMSELoss(projector=4)
    gradients: list[Tensor] = []
    for shape in ((9, 4), (2, 4, 3, 5)):
        value = loss(*pair(shape).float())
        gradients += torch.autograd.grad(value, list(loss.parameters()))
    loss(*pair((9, 4)).float()).backward()
    loss(*pair((2, 4, 3, 5)).float()).backward()
    assert loss.projector is not None
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    torch.testing.assert_close(loss.projector.grad, gradients[0] + gradients[1])


def test_a_projector_of_other_channels_is_named_for_rows_too() -> None:
    student, teacher = pair((9, 3)).float()
    with pytest.raises(ValueError, match='it has 5 channels, but the site 3'):
        FeatureMSELoss(projector=5)(student, teacher)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(9, 4), (2, 4, 3, 5)], ids=str)
def test_a_projector_follows_the_precision_of_features(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    student, teacher = pair(shape).to(dtype)
    loss = FeatureMSELoss(projector=4)
    expected = feature_mse_loss(student, teacher)
    value = loss(student, teacher)
    assert value.dtype == expected.dtype
    torch.testing.assert_close(value, expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher), value)
        # a module in half precision, of features that are
        assert torch.equal(loss.to(dtype)(student, teacher), value)


@pytest.mark.parametrize('shape', [(9, 4), (2, 4, 3, 5)], ids=str)
def test_gradient_of_a_projector_is_that_of_differences(
    shape: tuple[int, ...],
) -> None:
    student, teacher = pair(shape)
    weight = (torch.arange(16.0).view(4, 4).cos() + torch.eye(4)).double()
    assert torch.autograd.gradcheck(
        lambda s, w: feature_mse_loss(s, teacher, projector=w),
        (student.requires_grad_(), weight.requires_grad_()),
    )
