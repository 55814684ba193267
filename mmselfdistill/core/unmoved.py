"""Modules have the buffers after a call that they had before."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Tuple

import torch
from torch import Tensor, nn

from mmselfdistill.core.frozen import equal_tensors
from mmselfdistill.core.modes import is_norm

# a table of a module, and what was in it
_Items = Tuple[Dict[str, Any], List[Tuple[str, Any]]]


class Unmoved:
    """Puts back what a teacher's modules change when they are called.

    That is buffers, but for those of norms, which are off; and parameters that the
    student does not train, such as prototypes that a head averages by itself, where the
    first call has changed them.

    Args:
        teacher (nn.Module): The teacher.
        untrained (Iterable[Tensor]): Its parameters that the student does not train.
            Defaults to ().
    """

    def __init__(self, teacher: nn.Module, untrained: Iterable[Tensor] = ()) -> None:
        modules = [module for module in teacher.modules() if not is_norm(module)]
        self._tables = [module._buffers for module in modules]
        numbers = {*map(id, untrained)}
        self._parameters: list[_Items] = [
            (
                table,
                [(name, each) for name, each in table.items() if id(each) in numbers],
            )
            for table in (module._parameters for module in teacher.modules())
        ]
        # as each was, and its number of changes then
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}
        # those that calls change through ``data``, which PyTorch does not count
        self._uncounted: set[int] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the teacher be called, and put back what that changed."""
        tables: list[_Items] = [(t, [*t.items()]) for t in self._tables if t]
        before = [*tables, *self._parameters]
        held = [each for _, items in before for _, each in items if each is not None]
        with torch.no_grad():
            self._kept = {id(each): self._copied(each) for each in held}
        try:
            yield
        finally:
            first = self._uncounted is None
            if first:
                self._uncounted = {id(each) for each in held if self._is_changed(each)}
                self._parameters = [*self._moved()]
            for table, items in before:
                table.update(
                    (key, each) for key, each in items if _is_like(each, table.get(key))
                )
            for each in held:
                self._put_back(each)
            if first:
                # no copies of the others for long: they may be a whole backbone
                kept = {id(x) for _, xs in [*tables, *self._parameters] for _, x in xs}
                self._kept = {k: each for k, each in self._kept.items() if k in kept}

    def _moved(self) -> Iterator[_Items]:
        """Yield the parameters that a call has changed, or exchanged."""
        for table, items in self._parameters:
            moved = [
                (key, each)
                for key, each in items
                if self._is_moved(each) or table.get(key) is not each
            ]
            if moved:
                yield table, moved

    def _copied(self, held: Tensor) -> tuple[Tensor, int, Tensor]:
        known = self._kept.get(id(held))
        if known is not None and known[0] is held and known[1] == held._version:
            return known
        return held, held._version, held.detach().clone()

    def _is_changed(self, held: Tensor) -> bool:
        _, version, copied = self._kept[id(held)]
        return held._version == version and not equal_tensors(held.detach(), copied)

    def _is_moved(self, held: Tensor) -> bool:
        _, version, _ = self._kept[id(held)]
        return held._version != version or id(held) in (self._uncounted or ())

    @torch.no_grad()
    def _put_back(self, held: Tensor) -> None:
        copied = self._kept[id(held)][2]
        if self._is_moved(held) and _is_like(held, copied):
            held.copy_(copied)
            self._kept[id(held)] = held, held._version, copied


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
