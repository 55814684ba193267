"""Tensors in nested containers: find them, copy the containers, replace the tensors.

Containers are dicts, lists, tuples, named tuples, and objects of any other class, by
their attributes: dataclasses, MMEngine's data elements. Modules, functions and arrays
are no containers.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator as IteratorABC
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Callable, Iterator, Mapping, Tuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

Path = Tuple[Any, ...]
Leaf = Tuple[Path, Any]

PLAIN = (int, float, str, bytes, type(None), torch.device, torch.dtype, torch.Size)
_ITEMS = (list, tuple, set, frozenset, deque)
_BARE = (dict, *_ITEMS)
# they are called, or run out: what is in them cannot be replaced
CODE = (nn.Module, FunctionType, MethodType, partial, IteratorABC)
_CLOSED = (nn.Module, np.ndarray, np.generic, type, torch.Generator)


def leaves(data: Any) -> list[Leaf]:
    """List the tensors in nested containers, and the objects that hold some.

    An object comes before what it holds: a model may pass it on as it is.

    Returns:
        list[tuple]: Where each is (keys, indices, names of attributes), and what it is.
    """
    found: list[Leaf] = []
    _walk(data, (), found, set())
    return found


def tensors_in(data: Any) -> list[Tensor]:
    """List the tensors in nested containers, in order."""
    return [value for _, value in leaves(data) if isinstance(value, Tensor)]


def _walk(data: Any, path: Path, found: list[Leaf], inside: set[int]) -> None:
    if isinstance(data, (Tensor, *CODE)):
        found.append((path, data))
        return
    # an object may hold itself
    if isinstance(data, PLAIN) or id(data) in inside:
        return
    inside.add(id(data))
    before = len(found)
    for key, value in _parts(data):
        _walk(value, (*path, key), found, inside)
    inside.discard(id(data))
    if len(found) > before and not isinstance(data, (Mapping, *_ITEMS)):
        found.insert(before, (path, data))


def _parts(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        yield from data.items()
    elif isinstance(data, _ITEMS):
        yield from enumerate(data)
    # a dict of an own class may hold some besides
    if type(data) not in _BARE and not isinstance(data, _CLOSED) and not callable(data):
        yield from attributes(data).items()


def attributes(data: Any) -> dict[str, Any]:
    """Return what an object holds by name, in its ``__dict__`` or in slots."""
    held = getattr(data, '__dict__', None)
    found = dict(held) if isinstance(held, dict) else {}
    for kind in type(data).__mro__:
        slots = vars(kind).get('__slots__', ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ('__dict__', '__weakref__') and hasattr(data, name):
                found[name] = getattr(data, name)
    return found


def flat(data: Any) -> Iterator[Any]:
    """Yield what dicts, lists and tuples hold, at any depth."""
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, _ITEMS):
        for each in data:
            yield from flat(each)
    else:
        yield data


def snapshot(data: Any) -> Any:
    """Copy containers and data elements as they are now; all else is the very same."""
    return _rebuilt(data, snapshot)


def replaced(data: Any, versions: Mapping[int, Any]) -> Any:
    """Return the data with each value whose ``id`` is in ``versions`` replaced.

    An object is copied only where something in it is replaced: all else stays the very
    same.
    """
    return _replaced(data, versions, {})


def _replaced(data: Any, versions: Mapping[int, Any], made: dict[int, Any]) -> Any:
    if id(data) in versions:
        return versions[id(data)]
    # an object may hold itself
    if id(data) in made:
        return made[id(data)]
    if isinstance(data, (Tensor, *PLAIN)):
        return data
    if isinstance(data, CODE):
        return _rebound(data, versions)

    def change(value: Any) -> Any:
        return _replaced(value, versions, made)

    if isinstance(data, (*_BARE, BaseDataElement)):
        new = _rebuilt(data, change)
    elif any(id(value) in versions for _, value in leaves(data)):
        new = made[id(data)] = copy.copy(data)
    else:
        return data
    if type(data) in _BARE or isinstance(data, BaseDataElement):
        return new
    for key, value in attributes(data).items():
        if key in getattr(new, '__dict__', {}):
            # not setattr: a dataclass may be frozen
            vars(new)[key] = change(value)
        else:
            object.__setattr__(new, key, change(value))
    return new


def _rebuilt(data: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(data, tuple):
        return _rebuilt_tuple(data, [change(value) for value in data])
    if isinstance(data, frozenset):
        return type(data)(change(value) for value in data)
    if not isinstance(data, (*_BARE, BaseDataElement)):
        return data
    # a copy keeps the class, which may be made of something else than its items
    new: Any = copy.copy(data)
    if isinstance(data, dict):
        for key, value in data.items():
            dict.__setitem__(new, key, change(value))
    elif isinstance(data, BaseDataElement):
        vars(new).update((key, change(value)) for key, value in vars(data).items())
    else:
        new.clear()
        (new.update if isinstance(data, set) else new.extend)(map(change, data))
    return new


def _rebuilt_tuple(data: Any, values: list[Any]) -> Any:
    try:
        new: Any = tuple.__new__(type(data), values)
    except TypeError:  # a class of PyTorch: a size, or what torch.max returns
        return type(data)(values)
    if hasattr(new, '__dict__'):
        vars(new).update(vars(data))
    return new


def _rebound(data: Any, versions: Mapping[int, Any]) -> Any:
    """Return a method of an object as that of the object's version."""
    method = method_in(data)
    if method is not None and id(method.__self__) in versions:
        return getattr(versions[id(method.__self__)], method.__name__)
    return data


def method_in(data: Any) -> Any:
    """Return a bound method, also one that is wrapped to be recorded, or None."""
    while not isinstance(data, MethodType) and hasattr(data, '__wrapped__'):
        data = data.__wrapped__
    return data if isinstance(data, MethodType) else None


def written(path: Path) -> str:
    """Write a place in nested containers as Python would: ``[0]['x']``."""
    return ''.join(f'[{key!r}]' for key in path)
