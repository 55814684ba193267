"""What modules hold besides weights and buffers, and hand on outside of arguments.

A temperature that a hook lowers, a count of iterations, features that one part leaves
at another: the teacher's modules are given it before each call.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from operator import is_, itemgetter
from typing import Any, Callable, Mapping

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmselfdistill.containers import flat, replaced, snapshot
from mmselfdistill.core.modes import is_dropout, is_rate
from mmselfdistill.core.streams import copied

_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)
_GENERATORS = (
    *(torch.Generator, random.Random),
    *(np.random.Generator, np.random.RandomState),
)
_CONTAINERS = (list, tuple, dict)
_BASE = frozenset(vars(nn.Module()))
# items of a container: more are a vocabulary
_MOST = 32


@dataclass
class Held:
    """What one module held at a moment.

    Args:
        key (int): The ``id`` of the module.
        names (tuple[str, ...]): Attributes that nothing changes in place.
        values (tuple): Theirs, and that of the first name once more.
        read (Callable): Returns such a tuple of a dict of attributes.
        numbers (dict): Containers of numbers and text alone.
        others (dict): What may hold tensors, or draws numbers.
    """

    key: int
    names: tuple[str, ...]
    values: tuple[Any, ...]
    read: Callable[[dict[str, Any]], tuple[Any, ...]]
    numbers: dict[str, Any]
    others: dict[str, Any]


class Attributes:
    """Reads the attributes of a student's modules, those of PyTorch's own left out.

    Args:
        student (nn.Module): The bare model.
    """

    def __init__(self, student: nn.Module) -> None:
        modules = [
            module
            for module in student.modules()
            if not (type(module).__module__.startswith('torch.') or is_dropout(module))
        ]
        self._readers = [_Reader(id(module), vars(module)) for module in modules]

    def now(self) -> list[Held]:
        """Return numbers and text, and what may hold tensors or draws numbers."""
        return [reader.now() for reader in self._readers]


class _Reader:
    """Reads one module: a thousand attributes have to be looked at in each call."""

    def __init__(self, key: int, held: dict[str, Any]) -> None:
        self._key = key
        self._held = held
        self._sort()

    def _sort(self) -> None:
        kept = {
            name: value
            for name, value in self._held.items()
            if name not in _BASE
            and not (is_rate(name) and isinstance(value, float))
            and _is_kept(value)
        }
        self._size = len(self._held)
        self._fixed = tuple(name for name, value in kept.items() if _is_fixed(value))
        self._open = {name for name in kept if name not in self._fixed}
        self._numbers: dict[str, Any] = {}
        # with one name it would return no tuple
        names = (*self._fixed, *self._fixed[:1])
        self._read = itemgetter(*names) if names else _nothing
        self._values = self._read(self._held)

    def now(self) -> Held:
        try:
            same = all(map(is_, self._read(self._held), self._values))
        except KeyError:
            same = False
        if not (
            same and self._size == len(self._held) and self._held.keys() >= self._open
        ):
            self._sort()
        others = {}
        for name in self._open:
            value = self._held[name]
            # a container of numbers is most often what it was
            if name in self._numbers and _are_equal(self._numbers[name], value):
                continue
            self._numbers.pop(name, None)
            if isinstance(value, _CONTAINERS) and _is_plain(value):
                self._numbers[name] = snapshot(value)
            else:
                others[name] = _noted(value)
        numbers = {**self._numbers}
        return Held(self._key, self._fixed, self._values, self._read, numbers, others)


def _nothing(_: dict[str, Any]) -> tuple[Any, ...]:
    return ()


def _is_kept(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return len(value) <= _MOST and not isinstance(value, ConfigDict)
    return isinstance(value, (*_PLAIN, *_GENERATORS, Tensor))


def _is_fixed(value: Any) -> bool:
    # a tuple of such never holds anything else
    return type(value) in _PLAIN_TYPES or (type(value) is tuple and _is_plain(value))


def _is_plain(value: Any) -> bool:
    """Say whether a container holds nothing but numbers and text, at any depth."""
    items = value.values() if isinstance(value, dict) else value
    if _PLAIN_TYPES.issuperset(map(type, items)):
        return True
    return all(isinstance(each, _PLAIN) for each in flat(value))


def _are_equal(numbers: Any, value: Any) -> bool:
    try:
        return bool(numbers == value)
    except RuntimeError:  # a tensor is there by now
        return False


def _noted(value: Any) -> Any:
    if isinstance(value, _GENERATORS):
        return copied(value)
    # a container may hold something else later
    return snapshot(value) if isinstance(value, _CONTAINERS) else value


def put(each: Held, versions: Mapping[int, Any]) -> None:
    """Give a teacher's module what the student's held when a call began.

    Args:
        each (Held): What the student's held.
        versions (Mapping[int, Any]): The teacher's version of the student's modules
            and tensors, by their ``id``. Of tensors and containers, only what holds
            such values is given.
    """
    if each.key not in versions:
        return
    held: Any = vars(versions[each.key])
    try:
        same = all(map(is_, each.read(held), each.values))
    except KeyError:
        same = False
    if not same:
        held.update(zip(each.names, each.values))
    for name, value in each.numbers.items():
        if not _are_equal(value, held.get(name)):
            held[name] = snapshot(value)
    for name, value in each.others.items():
        if isinstance(value, _GENERATORS):
            held[name] = copied(value)
        elif isinstance(value, _PLAIN):
            held[name] = value
        elif any(id(part) in versions for part in flat(value)):
            held[name] = replaced(value, versions)
