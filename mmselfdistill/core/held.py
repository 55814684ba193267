"""What one module, or an object that it holds, holds at a moment besides weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import Enum
from operator import is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Callable, Collection, Tuple

import numpy as np
from mmengine.config import ConfigDict
from torch import Tensor

from mmselfdistill.containers import flat, rebuilt
from mmselfdistill.core.modes import holds_rate
from mmselfdistill.core.objects import (
    CONTAINERS,
    EXACT,
    GENERATORS,
    MOST,
    PLAIN,
    Key,
    held_by,
)
from mmselfdistill.core.streams import copied

_OF_NUMPY = (np.random.Generator, np.random.RandomState)

# some tensors at one moment: which they are, and how often each was changed
Moment = Tuple[Tuple['weakref.ref[Tensor]', int], ...]


@dataclass
class Held:
    """What one module, or an object that it holds, held at a moment.

    Args:
        key (Key): Which one.
        kind (type): Of the object; of what is none, that of None.
        names (tuple[str, ...]): Attributes that nothing changes in place.
        values (tuple): Theirs, and that of the first name once more.
        read (Callable): Returns such a tuple of a dict of attributes.
        numbers (dict): Containers and arrays of numbers and text alone.
        others (dict): What may hold tensors, or draws numbers.
        moments (dict): Of the tensors in these: which they were.
        gone (tuple[str, ...]): Attributes that it no longer holds.
    """

    key: Key
    kind: type
    names: tuple[str, ...]
    values: tuple[Any, ...]
    read: Callable[[dict[str, Any]], tuple[Any, ...]]
    numbers: dict[str, Any]
    others: dict[str, Any]
    moments: dict[str, Moment]
    gone: tuple[str, ...]

    @classmethod
    def nothing(cls, key: Key) -> Held:
        """Return what is held where an object is gone."""
        return cls(key, type(None), (), (), _nothing, {}, {}, {}, ())

    def tensors(self) -> list[Tensor]:
        """Return the tensors in it."""
        return tensors_at(self.others)


class Reader:
    """Reads one module or object: a thousand attributes are looked at in each call."""

    def __init__(self, key: Key, value: Any, left_out: Collection[str] = ()) -> None:
        self._key = key
        self._kind = type(value)
        self._held = held_by(value)
        self._left_out = left_out
        self.names: set[str] = set()
        self.sort()

    def sort(self) -> None:
        """Look again which attributes there are."""
        kept = {
            name: value
            for name, value in dict.items(self._held)
            if name not in self._left_out
            and not holds_rate(name, value)
            and _is_kept(value)
            # to copy one takes longer than all else, and each sampler has one
            and not (len(self._key) > 1 and isinstance(value, _OF_NUMPY))
        }
        self._size = len(self._held)
        self._fixed = tuple(name for name, value in kept.items() if _is_fixed(value))
        self.open = {name for name in kept if name not in self._fixed}
        self.names.update(kept)
        self._gone = tuple(self.names - self._held.keys())
        self._numbers: dict[str, Any] = {}
        self._read = _reading(self._fixed, type(self._held))
        self._values = self._read(self._held)
        self._last: Held | None = None

    def now(self) -> Held:
        """Return what is held at this moment; the same as before if it is so."""
        try:
            same = all(map(is_, self._read(self._held), self._values))
        except KeyError:
            same = False
        if not (
            same and self._size == len(self._held) and self._held.keys() >= self.open
        ):
            self.sort()
        if self._last is not None and not self.open:
            return self._last
        numbers, others, moments = self._numbers, {}, {}
        last, same = self._last, True
        for name in self.open:
            value = dict.__getitem__(self._held, name)
            # a container of numbers is most often what it was
            if name in numbers and are_equal(numbers[name], value):
                continue
            if last is not None and _are_the_same(last.others.get(name), value):
                before = last.moments[name]
                if is_same(before, moment(value)):
                    others[name], moments[name] = last.others[name], before
                    continue
            same = False
            # the last ones are still in use
            numbers = {key: each for key, each in numbers.items() if key != name}
            if _is_numbers(value):
                numbers[name] = copy_of(value)
            else:
                others[name], moments[name] = copy_of(value), moment(value)
        self._numbers = numbers
        if last is not None and same:
            return last
        names, values = self._fixed, self._values
        self._last = Held(
            *(self._key, self._kind, names, values, self._read, numbers, others),
            *(moments, self._gone),
        )
        return self._last


def _are_the_same(before: Any, value: Any) -> bool:
    """Say whether a tensor, or a list of such, is the very same as before."""
    if isinstance(value, Tensor):
        return before is value
    return (
        type(value) is list
        and type(before) is list
        and len(before) == len(value)
        and all(isinstance(each, Tensor) for each in value)
        and all(map(is_, before, value))
    )


def _reading(names: tuple[str, ...], kind: type) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads some items of a dict of a kind."""
    if not names:
        return _nothing
    if issubclass(kind, ConfigDict):
        get = dict.__getitem__  # its own would build the item
        return lambda held: tuple([get(held, name) for name in names])
    # with one name it would return no tuple
    return itemgetter(*names, names[0])


def _nothing(_: dict[str, Any]) -> tuple[Any, ...]:
    return ()


def _is_kept(value: Any) -> bool:
    if isinstance(value, CONTAINERS):
        return len(value) <= MOST and not isinstance(value, ConfigDict)
    if isinstance(value, np.ndarray):
        return value.size <= MOST and value.dtype != object
    return isinstance(value, (*PLAIN, *GENERATORS, Tensor)) or holds_nothing(value)


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
        type(value) in EXACT
        or isinstance(value, (np.generic, Enum))
        or (type(value) is tuple and _is_plain(value))
        or holds_nothing(value)
    )


def _is_numbers(value: Any) -> bool:
    plain = isinstance(value, CONTAINERS) and _is_plain(value)
    return plain or isinstance(value, np.ndarray)


def _is_plain(value: Any) -> bool:
    """Say whether a container holds nothing but numbers and text, at any depth."""
    # a config's own would build its items
    items = dict.values(value) if isinstance(value, dict) else value
    if EXACT.issuperset(map(type, items)):
        return True
    return all(isinstance(each, PLAIN) for each in flat(value))


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
    return rebuilt(value, copy_of) if isinstance(value, CONTAINERS) else value


def tensors_at(value: Any) -> list[Tensor]:
    """Return the tensors that a module holds by an attribute."""
    return [each for each in flat(value) if isinstance(each, Tensor)]


def moment(value: Any) -> Moment:
    """Return which tensors a module holds by an attribute at this moment."""
    return tuple(
        (weakref.ref(each), -1 if each.is_inference() else each._version)
        for each in tensors_at(value)
    )


def is_same(one: Moment, other: Moment) -> bool:
    """Say whether two moments are of the same tensors, unchanged."""
    return len(one) == len(other) and all(
        ref() is ref_before() is not None and version == before
        for (ref, version), (ref_before, before) in zip(one, other)
    )
