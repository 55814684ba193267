"""What is computed of given tensors outside of all recorded calls."""

from __future__ import annotations

from itertools import islice
from typing import Any, Callable, Iterable

from torch import Tensor

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.memory import place
from mmselfdistill.core.watch import Watch

# they ask for a shape, a dtype or a device alone
_NEW = ('new_', 'zeros_like', 'ones_like', 'empty_like', 'full_like', 'rand')


class Traced(Watch):  # type: ignore[no-untyped-call]
    """Follows some tensors through every operation, with or without gradient.

    Args:
        sources (Iterable[Tensor]): The tensors: images, or weights.
        outside (Callable): Says whether no recorded call is being made.

    Attributes:
        made (dict): What was computed of them, outside, by its place.
        changed (list[str]): Operations that changed one in place, outside.
    """

    def __init__(self, sources: Iterable[Tensor], outside: Callable[[], bool]) -> None:
        super().__init__()
        self._sources = [each.detach() for each in sources]
        self._places = set(map(place, self._sources)) - {None}
        self._outside = outside
        # held, so that no other tensor takes their place
        self.made: dict[Any, Tensor] = {}
        self.changed: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make an operation, and note what it makes of a source."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not self._outside() or name.startswith(_NEW):
            return output
        given = tensors_in((args, kwargs))
        if any(self.is_source(each) or self.is_made(each) for each in given):
            if name.endswith('_') and self.is_source(args[0]):
                self.changed.append(name)
            for each in tensors_in(output):
                if not self.is_source(each):
                    self.made.setdefault(place(each), each)
        return output

    def forget(self, first: int) -> None:
        """Forget what was computed from the ``first``-th on."""
        self.made = dict(islice(self.made.items(), first))

    def is_source(self, tensor: Tensor) -> bool:
        """Say whether a tensor is one of the sources, or a part of one."""
        return place(tensor) in self._places

    def is_made(self, tensor: Tensor) -> bool:
        """Say whether a tensor was computed of a source, outside of all calls."""
        where = place(tensor)
        return where is not None and where in self.made
