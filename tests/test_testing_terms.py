"""What a check says of one term, and how it measures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmselfdistill.testing.identity import Check, disturb, frozen_weights, gradients_of

NOT_ZERO = 'it is not 0 where it has to be'


def check(equal: float, apart: float, frozen: float, gradient: float) -> Check:
    return Check(['2x3'], equal, frozen, apart, gradient, 0.0)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ((1e-3, 1.0, 0.0, 1.0), NOT_ZERO),
        ((1e-4, 1.0, 0.0, 1.0), NOT_ZERO),
        ((2e-6, 1.0, 1e-9, 1.0), NOT_ZERO),
        ((float('nan'), 1.0, 0.0, 1.0), NOT_ZERO),
        ((0.0, 0.0, 0.0, 1.0), 'it is 0 at any weights'),
        ((0.0, float('nan'), 0.0, 1.0), 'it is nan at other weights'),
        ((0.0, -1.0, 0.0, 1.0), 'it is -1.0e+00 at other weights'),
        ((0.0, 1.0, 0.0, 0.0), 'its gradient at the student is 0'),
        ((0.0, 1.0, 0.0, float('inf')), 'its gradient at the student is inf'),
    ],
)
def test_a_term_that_is_wrong_says_how(
    values: tuple[float, float, float, float], message: str
) -> None:
    assert check(*values).problem().startswith(message)


def test_rounding_is_of_another_order_of_the_same_products() -> None:
    # exactly 0 where the student is frozen too
    assert check(2e-6, 1.0, 0.0, 1.0).problem() == ''
    assert check(9e-7, 1.0, 9e-7, 1.0).problem() == ''


def test_frozen_weights_are_trained_again_after_an_error() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match='in between'), frozen_weights(model):
        assert not model.weight.requires_grad
        raise RuntimeError('in between')
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def test_noise_reaches_constant_parameters_too() -> None:
    model = nn.BatchNorm2d(8)
    disturb(model)
    assert (model.weight != 1).all() and (model.bias != 0).all()


def test_gradients_are_those_of_the_value() -> None:
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 1), head=nn.Linear(1, 1)))
    value = model['head'](model['backbone'](torch.ones(1, 2))).sum()
    gradient, backbone = gradients_of(model, value)
    weight = float(model['head'].weight.detach().abs())
    hidden = float(model['backbone'](torch.ones(1, 2)).detach().abs())
    assert backbone == pytest.approx(3 * weight)
    assert gradient == pytest.approx(3 * weight + hidden + 1)
    assert gradients_of(model, torch.zeros(())) == (0, 0)
