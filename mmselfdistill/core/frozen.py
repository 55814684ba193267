"""Which modules are frozen in a student, and the same in its teacher."""

from __future__ import annotations

from operator import is_
from typing import Any, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mmselfdistill.containers import PLAIN

from .attributes import BASE
from .modes import draws, is_dropout, keeps_statistics

# items of a container in a module: more are a vocabulary, and no state
_MOST = 32


def frozen_modules(student: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose output depends on what they are given alone.

    No parameter in them trains, no buffer moves, and no number is drawn. A module
    without parameters, such as a pooling, is one too. The model itself is left out.

    Args:
        student (nn.Module): The bare model, in the mode in which it trains.

    Returns:
        dict[str, nn.Module]: By path.
    """
    fixed = {module: _is_fixed(module) for module in student.modules()}
    return {
        path: module
        for path, module in student.named_modules()
        if path and all(fixed[each] for each in module.modules())
    }


def _is_fixed(module: nn.Module) -> bool:
    moves = module.training and keeps_statistics(module)
    if isinstance(module, torch.jit.ScriptModule) or moves or draws(module):
        return False
    return all(is_plain(each) and not each.requires_grad for each in _own(module))


def is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is dense, of no class of its own, and counts its changes."""
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.layout is torch.strided and not tensor.is_inference()


def _own(module: nn.Module) -> Iterator[Tensor]:
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            if tensor is not None:
                yield tensor


class Marks:
    """What some modules are at one moment, to see later whether it still holds.

    PyTorch counts the changes of a tensor on the host: nothing waits for the device. It
    does not count those that go through ``tensor.data``. Modules of others than PyTorch
    may also hold tensors and numbers of their last call, for others to read.

    Args:
        modules (Iterable[nn.Module]): With all that is in them.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [below for each in modules for below in each.modules()]
        self._modes = self._modes_now()
        self._tables: list[tuple[Mapping[str, Any], list[Any]]] = [
            (table, [*table.values()])
            for each in self._modules
            for table in (each._parameters, each._buffers, each._modules)
        ]
        self._tensors = [tensor for each in self._modules for tensor in _own(each)]
        self._versions: list[int] = []
        # a hook may raise the rate of a dropout
        self._others = [
            module
            for module in self._modules
            if is_dropout(module) or not type(module).__module__.startswith('torch.nn.')
        ]
        self._held = self._held_now()
        self.renew()

    def renew(self) -> None:
        """Take the weights for unchanged."""
        self._versions = [tensor._version for tensor in self._tensors]

    def hold(self) -> bool:
        """Say whether nothing has changed."""
        return (
            [tensor._version for tensor in self._tensors] == self._versions
            and self._modes_now() == self._modes
            and all(
                len(table) == len(values) and all(map(is_, table.values(), values))
                for table, values in self._tables
            )
            and self._held_now() == self._held
        )

    def _modes_now(self) -> list[bool]:
        return [module.training for module in self._modules]

    def _held_now(self) -> list[Any]:
        return [
            _mark(item)
            for module in self._others
            for name, value in vars(module).items()
            if name not in BASE
            for item in _items(value)
        ]


def _items(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return (value,)
    return value if len(value) <= _MOST else ()


def _mark(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    return id(value) if isinstance(value, Tensor) else None


def equal_modules(
    student: nn.Module, teacher: nn.Module, paths: Collection[str]
) -> set[str]:
    """Return those of some modules whose weights and buffers are equal, bit for bit."""
    theirs = dict(teacher.named_modules())
    same: dict[nn.Module, bool] = {}

    def equal(path: str, module: nn.Module) -> bool:
        if module not in same:
            twin = theirs.get(path)
            same[module] = twin is not None and _equal(module, twin)
        return same[module]

    return {
        path
        for path in paths
        if all(
            equal(f'{path}.{below}'.rstrip('.'), module)
            for below, module in student.get_submodule(path).named_modules()
        )
    }


def _equal(ours: nn.Module, theirs: nn.Module) -> bool:
    one, other = [*_own(ours)], [*_own(theirs)]
    return len(one) == len(other) and all(map(equal_tensors, one, other))


def equal_tensors(one: Tensor, other: Tensor) -> bool:
    """Say whether two dense tensors are of one kind and place, with equal numbers."""
    kinds = [(t.dtype, t.device, t.layout, t.is_meta) for t in (one, other)]
    dense = kinds[0] == kinds[1] and kinds[0][2:] == (torch.strided, False)
    return dense and torch.equal(one, other)
