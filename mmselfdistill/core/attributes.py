"""What modules hold besides weights and buffers, and hand on outside of arguments.

A temperature that a hook lowers, a count of iterations, features that one part leaves
at another: the teacher's modules are given it before each call.
"""

from __future__ import annotations

import random
from typing import Any, List, Mapping, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmselfdistill.containers import flat, replaced
from mmselfdistill.core.modes import is_dropout, is_rate
from mmselfdistill.core.streams import copied

# the id of a module, the name of an attribute, and its value
Values = List[Tuple[int, str, Any]]

_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)
_GENERATORS = (
    *(torch.Generator, random.Random),
    *(np.random.Generator, np.random.RandomState),
)
_BASE = frozenset(vars(nn.Module()))
# items of a container: more are a vocabulary
_MOST = 32


class Attributes:
    """Reads the attributes of a student's modules, those of PyTorch's own left out.

    Args:
        student (nn.Module): The bare model.
    """

    def __init__(self, student: nn.Module) -> None:
        self._modules = [
            (id(module), vars(module))
            for module in student.modules()
            if not (type(module).__module__.startswith('torch.') or is_dropout(module))
        ]
        self._names: list[tuple[int, dict[str, Any], str]] = []
        self._sizes: list[int] = []

    def now(self) -> Values:
        """Return numbers and text, and what may hold tensors or draws numbers."""
        sizes = [len(held) for _, held in self._modules]
        if sizes != self._sizes:
            self._sizes = sizes
            self._names = [
                (key, held, name)
                for key, held in self._modules
                for name, value in held.items()
                if name not in _BASE
                and not (is_rate(name) and isinstance(value, float))
                and _is_kept(value)
            ]
        found: Values = []
        for key, held, name in self._names:
            value = held.get(name, held)
            # most are: no call of a function for each
            if type(value) in _PLAIN_TYPES:
                found.append((key, name, value))
            elif isinstance(value, _GENERATORS):
                found.append((key, name, copied(value)))
            elif value is not held and not _is_inert(value):
                found.append((key, name, value))
        return found


def _is_kept(value: Any) -> bool:
    kinds = (*_PLAIN, *_GENERATORS, Tensor, list, tuple, dict)
    return isinstance(value, kinds) and not isinstance(value, ConfigDict)


def _is_inert(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) > _MOST or _PLAIN_TYPES.issuperset(map(type, value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) > _MOST or _PLAIN_TYPES.issuperset(map(type, value))
    return False


def put(values: Values, versions: Mapping[int, Any]) -> None:
    """Give a teacher's modules what the student's held when a call began.

    Args:
        values (list): What :meth:`Attributes.now` returned.
        versions (Mapping[int, Any]): The teacher's version of the student's modules
            and tensors, by their ``id``. Of tensors and containers, only what holds
            such values is given.
    """
    for key, name, value in values:
        if key not in versions:
            continue
        held: Any = vars(versions[key])
        if held.get(name, held) is value:
            continue
        if isinstance(value, _PLAIN):
            held[name] = value
        elif isinstance(value, _GENERATORS):
            held[name] = copied(value)
        elif any(id(each) in versions for each in flat(value)):
            held[name] = replaced(value, versions)
