"""Random numbers that depend on some numbers alone, and move no stream of a run."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def generator_of(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a generator whose numbers depend on some numbers alone: seed, rank, ...

    So that a resumed run sees the same views, and no random stream is moved.
    """
    return torch.Generator(device).manual_seed(seed_of(*numbers))


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on some numbers alone, in [0, 2^63)."""
    # by itself (1,) is the same as (1, 0)
    entropy = np.random.SeedSequence((len(numbers), *numbers))
    (state,) = entropy.generate_state(1, np.uint64)
    return int(state >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of the host; those of a device are not asked for here."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
