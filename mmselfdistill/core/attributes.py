"""What modules hold besides weights and buffers, and hand on outside of arguments.

A temperature that a hook lowers, a count of iterations, features that one part leaves
at another: the teacher's modules are given it before each call.
"""

from __future__ import annotations

import copy
import random
from typing import Any, List, Mapping, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mmselfdistill.containers import flat, replaced
from mmselfdistill.core.modes import is_dropout, is_rate

# the path of a module, the name of an attribute, and its value
Values = List[Tuple[str, str, Any]]

_PLAIN = (bool, int, float, str, type(None))
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
            (path, vars(module))
            for path, module in student.named_modules()
            if not (type(module).__module__.startswith('torch.') or is_dropout(module))
        ]
        self._names: list[tuple[str, dict[str, Any], str]] = []
        self._sizes: list[int] = []

    def now(self) -> Values:
        """Return numbers and text, and what may hold tensors or draws numbers."""
        sizes = [len(held) for _, held in self._modules]
        if sizes != self._sizes:
            self._sizes = sizes
            self._names = [
                (path, held, name)
                for path, held in self._modules
                for name, value in held.items()
                if name not in _BASE
                and not (is_rate(name) and isinstance(value, float))
                and _is_kept(value)
            ]
        return [
            (path, name, _as_now(held[name]))
            for path, held, name in self._names
            if name in held
        ]


def _is_kept(value: Any) -> bool:
    return isinstance(value, (*_PLAIN, *_GENERATORS, Tensor, list, tuple, dict))


def _as_now(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, _GENERATORS) else value


def put(
    modules: Mapping[str, nn.Module], values: Values, versions: Mapping[int, Any]
) -> None:
    """Give a teacher's modules what the student's held when a call began.

    Args:
        modules (Mapping[str, nn.Module]): The teacher's, by path.
        values (list): What :meth:`Attributes.now` returned.
        versions (Mapping[int, Any]): What becomes another value, by its ``id``. Of
            tensors and containers, only what holds such values is given.
    """
    for path, name, value in values:
        if path not in modules:
            continue
        held: Any = vars(modules[path])
        if held.get(name, held) is value:
            continue
        if isinstance(value, _PLAIN):
            held[name] = value
        elif isinstance(value, _GENERATORS):
            held[name] = copy.deepcopy(value)
        elif _is_short(value) and any(id(each) in versions for each in flat(value)):
            held[name] = replaced(value, versions)


def _is_short(value: Any) -> bool:
    return isinstance(value, Tensor) or len(value) <= _MOST
