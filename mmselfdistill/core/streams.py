"""What a call depends on besides its arguments: random streams, and autocast."""

from __future__ import annotations

import copy
import random
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
import torch

from mmselfdistill.containers import flat

# kinds of devices, whether autocast is on there, and its dtype
Precision = List[Tuple[str, bool, torch.dtype]]


def rng_states() -> list[Any]:
    """Return the states of Python's and NumPy's generators, and of PyTorch's.

    These are those of the CPU and of the current device.
    """
    # all are kept on the host: reading them does not wait for the device
    numpy = np.random.get_state(legacy=False)
    states = [random.getstate(), numpy, torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return states


def copied(generator: Any) -> Any:
    """Return a copy of a generator of any kind, which draws the same from here on."""
    if not isinstance(generator, torch.Generator):
        return copy.deepcopy(generator)
    # PyTorch 2.1 cannot copy its own
    new = torch.Generator(generator.device)
    new.set_state(generator.get_state())
    return new


def set_rng_states(states: Sequence[Any]) -> None:
    """Put back what :func:`rng_states` returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if len(states) > 3:
        torch.cuda.set_rng_state(states[3])


def drawn_since(states: Sequence[Any]) -> bool:
    """Say whether a number was drawn since :func:`rng_states` returned these."""
    (python, numpy, *torchs), (own, ours, *others) = states, rng_states()
    return (
        python != own
        or not all(map(np.array_equal, flat(numpy), flat(ours)))
        or not all(map(torch.equal, torchs, others))
    )


@contextmanager
def forked_rng() -> Iterator[None]:
    """Put all these generators back at the end."""
    states = rng_states()
    try:
        yield
    finally:
        set_rng_states(states)


def precision() -> Precision:
    """Return how autocast is set at this moment."""
    kinds = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)
    if not hasattr(torch, 'get_autocast_dtype'):  # since PyTorch 2.4
        cpu = 'cpu', torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
        cuda = 'cuda', torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
        return [cpu, cuda][: len(kinds)]
    return [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in kinds
    ]


def autocast_to(dtype: torch.dtype) -> Precision:
    """Return autocast to a dtype, as :func:`precision` does."""
    return [(kind, True, dtype) for kind, _, _ in precision()]


@contextmanager
def at_precision(wanted: Precision) -> Iterator[None]:
    """Set autocast as :func:`precision` returned it."""
    with ExitStack() as stack:
        for now, (kind, enabled, dtype) in zip(precision(), wanted):
            if now != (kind, enabled, dtype):
                autocast = torch.autocast(kind, dtype=dtype, enabled=enabled)
                stack.enter_context(autocast)
        yield
