"""Whether a backward pass has reached the terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

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


class OfOneTerm(nn.Module):
    """Returns a loss of its own, and two terms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.minimised = Minimised()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.layer(images)
        own = dict(loss=found.mean())
        return {**own, **self.minimised.watched(own, added(0.0))}


@pytest.mark.parametrize('setting', ['', 'find_unused_parameters', 'static_graph'])
def test_ddp_hides_nothing(setting: str, tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / 'store'), 1)
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = OfOneTerm()
        settings: Any = {setting: True} if setting else {}
        wrapped = nn.parallel.DistributedDataParallel(model, **settings)
        found = wrapped(torch.ones(2, 1))
        (found['loss'] + found['loss_sd_b']).backward()
    finally:
        dist.destroy_process_group()
    assert model.minimised.left_out() == ['loss_sd_a']


def test_losses_without_gradient_stay_so() -> None:
    found = watched(Minimised(), torch.ones(()))
    assert not found['loss_sd_b'].requires_grad


def test_without_gradient_nothing_is_watched() -> None:
    minimised = Minimised()
    with torch.no_grad():
        found = watched(minimised, torch.ones(()))
    assert not found['loss_sd_b'].requires_grad
    assert minimised.left_out() == []
