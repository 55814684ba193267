"""The most memory that a block of code allocates, on the CPU too."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for given in tree_flatten((args, kwargs))[0]:
            if isinstance(given, Tensor):
                self._known.add(given.untyped_storage()._cdata)
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(returned)[0]:
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return returned

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """Measure a block: yields a list that holds, at its end, the most that it added.

    On CUDA it is the allocator's own count. On the CPU, tensors that operations return
    are counted, and not what an operation needs within itself.
    """
    found: list[int] = []
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
    else:
        with _Allocated() as allocated:
            yield found
        found.append(allocated.peak)
