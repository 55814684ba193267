"""Whether a backward pass has reached the terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmselfdistill.core.minimised import TURNS, Minimised


def added(late: float) -> dict[str, Tensor]:
    """Return two terms of which one is 0 as yet, and what is logged of one."""
    term = torch.full((), 2.0, requires_grad=True) * 3
    return {
        'loss_sd_a': term,
        'sd_a': term.detach(),
        'loss_sd_b': torch.tensor(late),
    }


def watched(minimised: Minimised, own: Any) -> dict[str, Tensor]:
    return minimised.watched(dict(loss=[own]), added(0.0))


def test_terms_that_are_added_are_reached_once() -> None:
    minimised, own = Minimised(), torch.ones((), requires_grad=True) * 2
    found = watched(minimised, own)
    assert {name: float(value) for name, value in found.items()} == {
        'loss_sd_a': 6.0,
        'sd_a': 6.0,
        'loss_sd_b': 0.0,
    }
    (own + found['loss_sd_a'] + found['loss_sd_b']).backward()
    assert minimised.left_out() == []
    # they are known: nothing is tied to a gradient any more
    assert not watched(minimised, own)['loss_sd_b'].requires_grad
    minimised.forget()
    assert watched(minimised, own)['loss_sd_b'].requires_grad


def test_those_that_are_left_out_are_named_once_there_was_a_gradient() -> None:
    minimised, own = Minimised(), torch.ones((), requires_grad=True) * 2
    found = watched(minimised, own)
    # an iteration whose loss is skipped says nothing
    assert minimised.left_out() == []
    found = watched(minimised, own)
    (own + found['loss_sd_b']).backward()
    assert minimised.left_out() == ['loss_sd_a']


def test_losses_may_be_minimised_by_turns() -> None:
    minimised = Minimised()

    def step(*chosen: str) -> list[str]:
        own = {key: torch.ones((), requires_grad=True) * 2 for key in ('a', 'b')}
        found = {**own, **minimised.watched(own, added(0.0))}
        sum(found[key] for key in chosen).backward()  # type: ignore[union-attr]
        return minimised.left_out()

    assert step('a') == []
    assert step('b', 'loss_sd_a') == []
    assert step('a', 'b') == ['loss_sd_b']
    minimised.forget()
    # a model of which one loss is never minimised
    assert [step('a', 'loss_sd_b') for _ in range(TURNS)] == [
        *[[]] * (TURNS - 1),
        ['loss_sd_a'],
    ]


class Sink(torch.autograd.Function):
    """Passes gradients on, also where there is none.

    So DDP's own does with ``find_unused_parameters`` or ``static_graph``.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(each.view_as(each) for each in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


@pytest.mark.parametrize(
    ('reached', 'left'), [(['loss'], ['loss_sd_a']), (['loss_sd_b'], [])]
)
def test_ddp_hides_nothing(reached: list[str], left: list[str]) -> None:
    minimised, own = Minimised(), torch.ones((), requires_grad=True) * 2
    losses = dict(loss=own, **watched(minimised, own))
    names = ['loss', 'loss_sd_a', 'loss_sd_b']
    apply: Any = Sink.apply
    sunk = dict(zip(names, apply(*(losses[name] for name in names))))
    # where no loss of the model's own is reached nothing is said
    sum(sunk[name] for name in [*reached, 'loss_sd_b']).backward()
    assert minimised.left_out() == left


def test_losses_without_gradient_stay_so() -> None:
    found = watched(Minimised(), torch.ones(()))
    assert not found['loss_sd_b'].requires_grad


def test_without_gradient_nothing_is_watched() -> None:
    minimised = Minimised()
    with torch.no_grad():
        found = watched(minimised, torch.ones(()))
    assert not found['loss_sd_b'].requires_grad
    assert minimised.left_out() == []
