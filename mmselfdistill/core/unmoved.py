"""Modules have the buffers after a call that they had before."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn

from mmselfdistill.core.frozen import equal_tensors
from mmselfdistill.core.modes import is_norm


class Unmoved:
    """Puts back the buffers that a teacher's modules change when they are called.

    Those of norms are left out: they are off.

    Args:
        teacher (nn.Module): The teacher.
    """

    def __init__(self, teacher: nn.Module) -> None:
        modules = [module for module in teacher.modules() if not is_norm(module)]
        self._tables = [module._buffers for module in modules]
        # as each was, and its number of changes then
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}
        # those that calls change through ``data``, which PyTorch does not count
        self._uncounted: set[int] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the teacher be called, and put back what that changed."""
        before = [(table, [*table.items()]) for table in self._tables if table]
        buffers = [b for _, items in before for _, b in items if b is not None]
        with torch.no_grad():
            self._kept = {id(buffer): self._copied(buffer) for buffer in buffers}
        try:
            yield
        finally:
            for table, items in before:
                table.update(
                    (key, b) for key, b in items if _is_like(b, table.get(key))
                )
            if self._uncounted is None:
                self._uncounted = {id(b) for b in buffers if self._is_changed(b)}
            for buffer in buffers:
                self._put_back(buffer)

    def _copied(self, buffer: Tensor) -> tuple[Tensor, int, Tensor]:
        known = self._kept.get(id(buffer))
        if known is not None and known[0] is buffer and known[1] == buffer._version:
            return known
        return buffer, buffer._version, buffer.clone()

    def _is_changed(self, buffer: Tensor) -> bool:
        _, version, copied = self._kept[id(buffer)]
        return buffer._version == version and not equal_tensors(buffer, copied)

    @torch.no_grad()
    def _put_back(self, buffer: Tensor) -> None:
        _, version, copied = self._kept[id(buffer)]
        moved = buffer._version != version or id(buffer) in (self._uncounted or ())
        if moved and _is_like(buffer, copied):
            buffer.copy_(copied)
            self._kept[id(buffer)] = buffer, buffer._version, copied


class Spare:
    """Lets modules change copies of their buffers, and gives them their own back.

    A copy that no call has changed is the same one the next time: what is frozen stays
    as it is.
    """

    def __init__(self) -> None:
        # by the buffer: it, its copy, and how often each was changed
        self._made: dict[int, tuple[Tensor, Tensor, tuple[int, int]]] = {}
        self._uncounted: set[int] | None = None

    @contextmanager
    def held(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Let modules have copies for a while."""
        kept = [(module, dict(module._buffers)) for module in modules]
        own = [b for _, buffers in kept for b in buffers.values() if b is not None]
        self._made = {id(buffer): self._copied(buffer) for buffer in own}
        # their own are not copied back in place: a backward pass may need what was used
        for module, buffers in kept:
            for name, buffer in buffers.items():
                module._buffers[name] = (
                    None if buffer is None else self._made[id(buffer)][1]
                )
        try:
            yield
        finally:
            for module, buffers in kept:
                module._buffers.update(buffers)
            if self._uncounted is None:
                self._uncounted = {
                    id(buffer)
                    for buffer, copied, (_, version) in self._made.values()
                    if copied._version == version and not equal_tensors(buffer, copied)
                }

    def _copied(self, buffer: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        known = self._made.get(id(buffer))
        if known is not None and id(buffer) not in (self._uncounted or ()):
            own, copied, versions = known
            if own is buffer and versions == (buffer._version, copied._version):
                return known
        copied = buffer.clone()
        return buffer, copied, (buffer._version, copied._version)


def _is_like(buffer: Tensor | None, other: Tensor | None) -> bool:
    # one that a call gave its size is made by then
    return buffer is not None and other is not None and buffer.shape == other.shape
