"""What modules hold besides weights and buffers, and hand on outside of arguments.

A temperature that a hook lowers, a count of iterations, features that one part leaves
at another: see :class:`Handed`, which gives it to the teacher's modules.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any, Sequence

from torch import nn

from mmselfdistill.core.held import Held, Reader
from mmselfdistill.core.modes import is_dropout, keeps_statistics
from mmselfdistill.core.objects import (
    BASE,
    Key,
    held_by,
    objects_in,
)


class Attributes:
    """Reads the attributes of a student's modules, and of objects that they hold.

    Those of PyTorch's own modules are left out where these have weights.

    Args:
        student (nn.Module): The bare model.
    """

    def __init__(self, student: nn.Module) -> None:
        modules = [
            module
            for module in student.modules()
            if not (_has_constants(module) or is_dropout(module))
        ]
        readers = map(_reader_of, modules)
        self._readers = [each for each in readers if each is not None]
        self._objects = _Objects(modules)

    def now(self) -> list[Held]:
        """Return numbers and text, and what may hold tensors or draws numbers."""
        if self._objects.look():
            for each in self._readers:
                # a number may be where an object was
                each.sort()
        held = [reader.now() for reader in self._readers]
        return held + self._objects.now()


def _has_constants(module: nn.Module) -> bool:
    # an activation may have a slope that a hook changes; a convolution has none
    of_pytorch = type(module).__module__.startswith('torch.')
    known = type(module).__module__.startswith('torch.nn.modules.')
    holds = [*module.children()] or module._parameters or module._buffers
    return of_pytorch and not (known and not holds)


def _reader_of(module: nn.Module) -> Reader | None:
    of_pytorch = type(module).__module__.startswith('torch.')
    # of a norm, it is off in the teacher
    no_mode = of_pytorch or keeps_statistics(module)
    left_out = BASE if no_mode else BASE - {'training'}
    reader = Reader((id(module),), module, left_out)
    # PyTorch's own are given nothing new
    return reader if not of_pytorch or reader.names - {'inplace'} else None


class _Objects:
    """Reads the objects that modules hold; most of these never change."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._lost: dict[Key, Held] = {}
        self._readers: dict[Key, Reader] = {}
        self._find()

    def _find(self) -> None:
        self._places = [each for module in self._modules for each in objects_in(module)]
        # in another object, a look at all values shows it
        tables = [held_by(place.value) for place in self._places]
        inside = {*map(id, tables)}
        self._outer = [each for each in self._places if id(each.holder) not in inside]
        self._tables, known = tables, {*self._readers, *self._lost}
        self._readers = {
            each.key: Reader(each.key, each.value) for each in self._places
        }
        self._lost = {key: Held.nothing(key) for key in known - self._readers.keys()}
        self._values = self._values_now()
        self._still: list[Held] | None = None

    def _values_now(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._tables))]

    def look(self) -> bool:
        """Look again where the objects are, and say whether there are others."""
        values = self._values_now()
        same = len(values) == len(self._values) and all(map(is_, values, self._values))
        if same and all(place.is_same() for place in self._outer):
            return False
        self._values, self._still = values, None
        moved = not all(place.is_same() for place in self._places)
        if moved:
            self._find()
        return moved

    def now(self) -> list[Held]:
        """Return what each object holds."""
        if self._still is None:
            held = [(reader, reader.now()) for reader in self._readers.values()]
            self._moving = [reader for reader, _ in held if reader.open]
            self._still = [each for reader, each in held if not reader.open]
            self._still += self._lost.values()
        return self._still + [reader.now() for reader in self._moving]
