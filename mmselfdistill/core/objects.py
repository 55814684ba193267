"""What a module may hold besides weights: kinds of values, and objects of any class."""

from __future__ import annotations

import random
from collections import deque
from enum import Enum
from operator import getitem
from typing import Any, Iterator, NamedTuple, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmselfdistill.containers import CODE
from mmselfdistill.core.apart import SHARED

_KINDS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
EXACT = frozenset(_KINDS)
PLAIN = (*_KINDS, np.generic, Enum)
GENERATORS = (
    *(torch.Generator, random.Random),
    *(np.random.Generator, np.random.RandomState),
)
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
# what every module has
BASE = frozenset(vars(nn.Module()))
# items of a container or an array: more are a vocabulary
MOST = 256

# the id of a module; and of an object, its names, indices and keys from there
Key = Tuple[Any, ...]
_ITEMS = (list, tuple, deque)
_CLOSED: Any = (
    *(nn.Module, Tensor, np.ndarray, type),
    *(*PLAIN, *GENERATORS, *CODE, *SHARED),
)


class Place(NamedTuple):
    """Where an object is.

    Args:
        key (Key): The place, as others write it.
        holder (Any): The dict, list or tuple that holds it.
        value (Any): The object.
    """

    key: Key
    holder: Any
    value: Any

    def is_same(self) -> bool:
        """Say whether the very same object is there."""
        try:
            return _item(self.holder, self.key[-1]) is self.value
        except LookupError:
            return False


def objects_in(module: nn.Module) -> Iterator[Place]:
    """Yield the objects that a module holds, at any depth, each once.

    Configs of MMEngine are such too. Those of PyTorch's own classes are left out.
    """
    seen: dict[int, Any] = {}
    stack = [
        Place((id(module), name), vars(module), value)
        for name, value in vars(module).items()
        # a forward there is extended by us
        if name not in BASE and name != 'forward'
    ]
    while stack:
        place = stack.pop()
        value = place.value
        if isinstance(value, _CLOSED) or id(value) in seen:
            continue
        seen[id(value)] = value
        if is_object(value):
            yield place
            value = held_by(value)
        if isinstance(value, (dict, *_ITEMS)) and len(value) <= MOST:
            pairs = dict.items(value) if isinstance(value, dict) else enumerate(value)
            stack += [Place((*place.key, step), value, each) for step, each in pairs]


def object_at(held: dict[str, Any], steps: Key) -> Any:
    """Return the object at a place, or None if there is none.

    Args:
        held (dict): What the module holds.
        steps (tuple): Names, indices and keys from there.
    """
    found: Any = held
    try:
        for step in steps:
            found = _item(held_by(found), step)
    except (LookupError, TypeError):
        return None
    return found if is_object(found) else None


def held_by(value: Any) -> Any:
    """Return the items of a container, or the attributes of another object."""
    return value if isinstance(value, (dict, *_ITEMS)) else vars(value)


def is_object(value: Any) -> bool:
    """Say whether a value is a config, or an object of a class that is no container."""
    if isinstance(value, ConfigDict):
        return True
    closed = isinstance(value, (*_CLOSED, *CONTAINERS))
    of_pytorch = type(value).__module__.startswith('torch')
    has_own = isinstance(getattr(value, '__dict__', None), dict)
    return has_own and not closed and not of_pytorch


def _item(held: Any, step: Any) -> Any:
    # a config would build its item
    get: Any = dict.__getitem__ if isinstance(held, dict) else getitem
    return get(held, step)
