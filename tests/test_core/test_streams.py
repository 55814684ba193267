"""Random streams and precision: noticed, put back, and set again."""

from __future__ import annotations

import copy
import random
from typing import Any, Callable

import numpy as np
import pytest
import torch
from mmengine.utils import digit_version

from mmselfdistill.core.streams import (
    at_precision,
    autocast_to,
    copied,
    drawn_since,
    forked_rng,
    precision,
    rng_states,
)

DRAWS: dict[str, Callable[[], Any]] = {
    'Python': random.random,
    'NumPy': np.random.rand,
    'PyTorch': lambda: torch.rand(()).item(),
}

HALF = pytest.param(
    torch.float16,
    marks=pytest.mark.skipif(
        digit_version(torch.__version__) < digit_version('2.2'),
        reason='the autocast of this PyTorch has no float16 on a CPU',
    ),
)
DTYPES = [None, torch.bfloat16, HALF]


@pytest.mark.parametrize('draw', DRAWS.values(), ids=DRAWS)
def test_a_draw_is_noticed_and_put_back(draw: Callable[[], Any]) -> None:
    states = rng_states()
    assert not drawn_since(states)
    with forked_rng():
        first = draw()
        assert drawn_since(states)
    assert not drawn_since(states)
    assert draw() == first != draw()


@pytest.mark.parametrize(
    'make',
    [lambda: random.Random(3), lambda: np.random.default_rng(3), torch.Generator],
    ids=DRAWS,
)
def test_a_copied_generator_draws_the_same(make: Callable[[], Any]) -> None:
    def drawn(generator: Any) -> float:
        if isinstance(generator, torch.Generator):
            return torch.rand((), generator=generator).item()
        return float(generator.random())

    one = make()
    drawn(one)
    other = copied(one)
    numbers = [drawn(one) for _ in range(3)]
    assert numbers == [drawn(other) for _ in range(3)]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize('outside', DTYPES)
@pytest.mark.parametrize('inside', DTYPES)
def test_precision_is_set_again_and_put_back(outside: Any, inside: Any) -> None:
    def dtype() -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    plain = precision()
    wanted = autocast_to(inside) if inside else plain
    with at_precision(autocast_to(outside) if outside else plain):
        assert dtype() == (outside or torch.float32)
        before = copy.copy(precision())
        with at_precision(wanted):
            assert dtype() == (inside or torch.float32)
            assert precision() == wanted
        assert precision() == before
    assert precision() == plain
