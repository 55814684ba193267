"""Tensors in nested containers: find them, copy the containers, replace the tensors.

Containers are dicts, lists, tuples, named tuples, and objects of any other class, by
their attributes: dataclasses, MMEngine's data elements. Modules, functions and arrays
are no containers.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator, Mapping, Tuple

import numpy as np
import torch
from torch import Tensor, nn

Path = Tuple[Any, ...]
Leaf = Tuple[Path, Any]

PLAIN = (int, float, str, bytes, type(None), torch.device, torch.dtype, torch.Size)
_BARE = (dict, list, tuple)
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
    if isinstance(data, Tensor):
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
    if len(found) > before and not isinstance(data, (Mapping, list, tuple)):
        found.insert(before, (path, data))


def _parts(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        yield from data.items()
    elif isinstance(data, (list, tuple)):
        yield from enumerate(data)
    # a dict of an own class may hold some besides
    if type(data) not in _BARE and not isinstance(data, _CLOSED) and not callable(data):
        yield from _attributes(data).items()


def _attributes(data: Any) -> dict[str, Any]:
    found = dict(getattr(data, '__dict__', {}))
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
    if isinstance(data, (list, tuple)):
        for each in data:
            yield from flat(each)
    else:
        yield data


def snapshot(data: Any) -> Any:
    """Copy dicts, lists and tuples as they are now; all else is the very same."""
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

    def change(value: Any) -> Any:
        return _replaced(value, versions, made)

    if isinstance(data, (dict, list, tuple)):
        new = _rebuilt(data, change)
    elif any(id(value) in versions for _, value in leaves(data)):
        new = made[id(data)] = copy.copy(data)
    else:
        return data
    if type(data) in _BARE:
        return new
    for key, value in _attributes(data).items():
        if key in getattr(new, '__dict__', {}):
            # not setattr: a dataclass may be frozen
            vars(new)[key] = change(value)
        else:
            object.__setattr__(new, key, change(value))
    return new


def _rebuilt(data: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(data, dict):
        # a copy keeps the class: defaultdict, ConfigDict
        new = copy.copy(data)
        for key, value in data.items():
            dict.__setitem__(new, key, change(value))
        return new
    if isinstance(data, tuple):
        values = [change(value) for value in data]
        named = hasattr(data, '_fields')
        return type(data)(*values) if named else type(data)(values)
    if isinstance(data, list):
        return type(data)(change(value) for value in data)
    return data


def written(path: Path) -> str:
    """Write a place in nested containers as Python would: ``[0]['x']``."""
    return ''.join(f'[{key!r}]' for key in path)
