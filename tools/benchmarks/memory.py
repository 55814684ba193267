"""The most memory that a block of code allocates, on the CPU too."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate
from typing import Iterator

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """Measure a block: yields a list that holds, at its end, the most that it added.

    It is the allocator's own count: on CUDA its peak, on the CPU the highest sum of
    what the block allocated, less what it freed of that, as PyTorch's profiler records
    them.
    """
    found: list[int] = []
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            yield found
        events = prof.profiler.kineto_results.events()
        changes = [each.nbytes() for each in events if each.name() == '[memory]']
        found.append(max(accumulate(changes, initial=0)))
