"""What modules hold besides weights and buffers, and hand on outside of arguments.

A temperature that a hook lowers, a count of iterations, features that one part leaves
at another: see :class:`Handed`, which gives it to the teacher's modules.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from dataclasses import dataclass
from enum import Enum
from operator import is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Callable, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmselfdistill.containers import flat, snapshot
from mmselfdistill.core.modes import (
    holds_rate,
    is_dropout,
    is_norm,
    keeps_statistics,
)
from mmselfdistill.core.streams import copied

_KINDS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_EXACT = frozenset(_KINDS)
SIMPLE = (*_KINDS, np.generic, Enum)
GENERATORS = (
    *(torch.Generator, random.Random),
    *(np.random.Generator, np.random.RandomState),
)
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
# what every module has
BASE = frozenset(vars(nn.Module()))
# items of a container or an array: more are a vocabulary
_MOST = 256


# an attribute of a module, which is named by its `id`
Slot = Tuple[int, str]
# some tensors at one moment: which they are, and how often each was changed
Moment = Tuple[Tuple['weakref.ref[Tensor]', int], ...]


@dataclass
class Held:
    """What one module held at a moment.

    Args:
        key (int): The ``id`` of the module.
        names (tuple[str, ...]): Attributes that nothing changes in place.
        values (tuple): Theirs, and that of the first name once more.
        read (Callable): Returns such a tuple of a dict of attributes.
        numbers (dict): Containers and arrays of numbers and text alone.
        others (dict): What may hold tensors, or draws numbers.
        moments (dict): Of the tensors in these: which they were.
        shared (dict): Containers that another module holds too: where it was read.
        gone (tuple[str, ...]): Attributes that it no longer holds.
    """

    key: int
    names: tuple[str, ...]
    values: tuple[Any, ...]
    read: Callable[[dict[str, Any]], tuple[Any, ...]]
    numbers: dict[str, Any]
    others: dict[str, Any]
    moments: dict[str, Moment]
    shared: dict[str, Slot]
    gone: tuple[str, ...]

    def tensors(self) -> list[Tensor]:
        """Return the tensors in it."""
        # most modules hold none, and each call asks all of them
        return tensors_at(self.others) if self.others else []


class Attributes:
    """Reads the attributes of a student's modules.

    Those of PyTorch's own modules are left out where these have weights.

    Args:
        student (nn.Module): The bare model.
    """

    def __init__(self, student: nn.Module) -> None:
        readers = [
            _Reader(module, vars(module))
            for module in student.modules()
            if not (_has_constants(module) or is_dropout(module))
        ]
        self._readers = [each for each in readers if each.reads]

    def now(self) -> list[Held]:
        """Return numbers and text, and what may hold tensors or draws numbers."""
        slots: dict[int, Slot] = {}
        return [reader.now(slots) for reader in self._readers]


def _has_constants(module: nn.Module) -> bool:
    # an activation may have a slope that a hook changes; a convolution has none
    of_pytorch = type(module).__module__.startswith('torch.')
    known = type(module).__module__.startswith('torch.nn.modules.')
    holds = [*module.children()] or module._parameters or module._buffers
    return of_pytorch and not (known and not holds)


class _Reader:
    """Reads one module: a thousand attributes have to be looked at in each call."""

    def __init__(self, module: nn.Module, held: dict[str, Any]) -> None:
        # held: no other module gets its id
        self._module = module
        self._key = id(module)
        self._held = held
        of_pytorch = type(module).__module__.startswith('torch.')
        # of a norm, it is off in the teacher
        no_mode = of_pytorch or keeps_statistics(module)
        self._left_out = BASE if no_mode else BASE - {'training'}
        if is_norm(module):
            # the teacher's may go by the batch, and keep its statistics
            self._left_out |= {'track_running_stats'}
        self._seen: set[str] = set()
        self._sort()
        # PyTorch's own are given nothing new
        self.reads = bool(self._seen - {'inplace'}) or not of_pytorch

    def _sort(self) -> None:
        kept = {
            name: value
            for name, value in self._held.items()
            if name not in self._left_out
            and not holds_rate(name, value)
            and is_kept(value)
        }
        self._size = len(self._held)
        self._fixed = tuple(name for name, value in kept.items() if _is_fixed(value))
        self._open = {name for name in kept if name not in self._fixed}
        self._seen.update(kept)
        self._gone = tuple(self._seen - self._held.keys())
        self._numbers: dict[str, Any] = {}
        # with one name it would return no tuple
        names = (*self._fixed, *self._fixed[:1])
        self._read = itemgetter(*names) if names else _nothing
        self._values = self._read(self._held)
        self._last: Held | None = None

    def now(self, slots: dict[int, Slot]) -> Held:
        """Return what the module holds.

        Args:
            slots (dict): Where each container was read, by its ``id``: of others,
                and then of this module's too.
        """
        try:
            same = all(map(is_, self._read(self._held), self._values))
        except KeyError:
            same = False
        if not (
            same and self._size == len(self._held) and self._held.keys() >= self._open
        ):
            self._sort()
        if self._last is not None:
            return self._last
        others, shared = {}, {}
        for name in self._open:
            value = self._held[name]
            if id(value) in slots:
                self._numbers.pop(name, None)
                shared[name] = slots[id(value)]
                continue
            if isinstance(value, CONTAINERS):
                slots[id(value)] = self._key, name
            # a container of numbers is most often what it was
            if name in self._numbers and are_equal(self._numbers[name], value):
                continue
            self._numbers.pop(name, None)
            if _is_numbers(value):
                self._numbers[name] = copy_of(value)
            else:
                others[name] = copy_of(value)
        held = Held(
            key=self._key,
            names=self._fixed,
            values=self._values,
            read=self._read,
            numbers={**self._numbers},
            others=others,
            moments={name: moment(value) for name, value in others.items()},
            shared=shared,
            gone=self._gone,
        )
        # what is open may hold tensors of this iteration
        self._last = None if self._open else held
        return held


def _nothing(_: dict[str, Any]) -> tuple[Any, ...]:
    return ()


def is_kept(value: Any) -> bool:
    """Say whether what a module holds is looked at, and no vocabulary or config."""
    if isinstance(value, CONTAINERS):
        return len(value) <= _MOST and not isinstance(value, ConfigDict)
    if isinstance(value, np.ndarray):
        return value.size <= _MOST and value.dtype != object
    return isinstance(value, (*SIMPLE, *GENERATORS, Tensor)) or holds_nothing(value)


def holds_nothing(value: Any) -> bool:
    """Say whether a value is a function that holds nothing: an activation."""
    if isinstance(value, BuiltinFunctionType):
        return isinstance(value.__self__, (ModuleType, type(None)))
    return isinstance(value, FunctionType) and not (
        value.__closure__ or value.__defaults__ or value.__kwdefaults__
    )


def _is_fixed(value: Any) -> bool:
    # a tuple of such never holds anything else
    return (
        type(value) in _EXACT
        or isinstance(value, (np.generic, Enum))
        or (type(value) is tuple and all(map(_is_fixed, value)))
        or holds_nothing(value)
    )


def _is_numbers(value: Any) -> bool:
    plain = isinstance(value, CONTAINERS) and _is_plain(value)
    return plain or isinstance(value, np.ndarray)


def _is_plain(value: Any) -> bool:
    """Say whether a container holds nothing but numbers and text, at any depth."""
    items = value.values() if isinstance(value, dict) else value
    if _EXACT.issuperset(map(type, items)):
        return True
    return all(isinstance(each, SIMPLE) for each in flat(value))


def are_equal(numbers: Any, value: Any) -> bool:
    """Say whether a container or array of numbers is what it was."""
    if type(numbers) is not type(value):
        return False
    if isinstance(value, np.ndarray):
        return bool(value.dtype == numbers.dtype and np.array_equal(numbers, value))
    try:
        return bool(numbers == value)
    except (RuntimeError, ValueError):  # a tensor or an array is there by now
        return False


def copy_of(value: Any) -> Any:
    """Return a value as it is now: a container or a generator may change."""
    if isinstance(value, GENERATORS):
        return copied(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    return snapshot(value) if isinstance(value, CONTAINERS) else value


def tensors_at(value: Any) -> list[Tensor]:
    """Return the tensors that a module holds by an attribute."""
    return [each for each in flat(value) if isinstance(each, Tensor)]


def moment(value: Any) -> Moment:
    """Return which tensors a module holds by an attribute at this moment."""
    return tuple(
        (weakref.ref(each), -1 if each.is_inference() else each._version)
        for each in tensors_at(value)
    )
