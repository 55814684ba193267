"""The random streams of the host and of the current device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Sequence

import torch
from torch import Tensor


def rng_states() -> list[Tensor]:
    """Return the states of the generators of the CPU and of the current device."""
    # both are kept on the host: reading them does not wait for the device
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return states


def set_rng_states(states: Sequence[Tensor]) -> None:
    """Put back what :func:`rng_states` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


@contextmanager
def forked_rng() -> Iterator[None]:
    """Put the generators of the CPU and of the current device back at the end."""
    states = rng_states()
    try:
        yield
    finally:
        set_rng_states(states)
