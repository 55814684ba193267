"""What a model reaches, and the proof that a teacher reaches nothing of its student."""

from __future__ import annotations

import functools
import logging
import threading
import types
import weakref
from collections import deque
from contextlib import contextmanager
from itertools import chain
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mmselfdistill.containers import attributes

from .memory import address

# what runs with a call of a module, and what says how: the dicts of its hooks
HOOKS = {
    '_forward_pre_hooks': ('_forward_pre_hooks_with_kwargs',),
    '_forward_hooks': ('_forward_hooks_with_kwargs', '_forward_hooks_always_called'),
    '_backward_pre_hooks': (),
    '_backward_hooks': (),
}
_REGISTERED = ('_modules', '_parameters', '_buffers')
Keep = Callable[[Any], bool]


_GROUPS = [torch.distributed.ProcessGroup] if torch.distributed.is_available() else []
# what teacher and student may both hold, and what is too simple to look at
SHARED: tuple[type[Any], ...] = (logging.Logger, threading.Condition, *_GROUPS)
_SIMPLE = (
    *(str, bytes, bool, int, float, complex, type(None), type),
    *(types.ModuleType, types.CodeType),
)


def parts(value: Any, keep: Keep) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, each with how it is written after the object.

    Args:
        value (Any): A module, container, function, or any other object.
        keep (Callable): Says of a hook of a module whether it counts.

    Yields:
        tuple[str, Any]: A suffix such as ``'.conv'`` or ``'[0]'``, and the part.
    """
    if isinstance(value, SHARED):
        return
    if isinstance(value, nn.Module):
        yield from _parts_of_module(value, keep)
    elif isinstance(value, dict):
        for key, item in dict.items(value):  # a config's own would build its items
            yield '[key]', key
            yield f'[{key!r}]' if isinstance(key, (str, int)) else '[value]', item
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for index, item in enumerate(value):
            yield f'[{index}]', item
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield '.__func__', value.__func__
        yield '.__self__', value.__self__
    elif isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        yield '.__self__', value.__self__
    elif isinstance(value, functools.partial):
        yield '.func', value.func
        yield '.args', value.args
        yield '.keywords', value.keywords
    elif isinstance(value, weakref.ref):
        yield '()', value()
    if not isinstance(value, nn.Module):
        for name, item in attributes(value).items():
            yield f'.{name}', item


def _parts_of_module(module: nn.Module, keep: Keep) -> Iterator[tuple[str, Any]]:
    for name, item in vars(module).items():
        if name in _REGISTERED:
            for key, child in item.items():
                yield f'.{key}', child
        elif name in HOOKS:
            for hook in item.values():
                if keep(hook):
                    yield f'.{name}', hook
        elif name != '_compiled_call_impl':  # which no copy takes along
            yield f'.{name}', item


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or ()):
        # a variable that is not assigned yet has no contents
        for item in contents(cell):
            yield f' (variable {name})', item
    yield '.__defaults__', function.__defaults__
    yield '.__kwdefaults__', function.__kwdefaults__


def contents(cell: Any) -> Iterator[Any]:
    """Yield what a closure's cell holds, or nothing if it is empty."""
    try:
        yield cell.cell_contents
    except ValueError:
        return


def walk(root: Any, keep: Keep) -> Iterator[tuple[str, Any]]:
    """Yield once each object that can be reached from a root, with its path.

    Args:
        root (Any): Where to begin; it is yielded first, at the path ``''``.
        keep (Callable): Says of a hook of a module whether it counts.

    Yields:
        tuple[str, Any]: The path, and the object.
    """
    seen: dict[int, Any] = {}  # holds what it saw: a number of a dead object is reused
    stack: list[tuple[str, Any]] = [('', root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, _SIMPLE) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield path.lstrip('.'), value
        below = [(path + suffix, part) for suffix, part in parts(value, keep)]
        stack.extend(reversed(below))


def prove_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher from which a part of the student can be reached.

    Attributes, containers, functions with what they enclose, bound methods and
    plain objects are followed.

    Args:
        teacher (nn.Module): The copy.
        student (nn.Module): The bare model.

    Raises:
        ValueError: If there is a module, parameter or buffer of the student; the
            message says where.
    """
    tensors = dict(chain(student.named_parameters(), student.named_buffers()))
    modules = {id(module): name for name, module in student.named_modules()}
    objects = {id(tensor): name for name, tensor in tensors.items()}
    storages = {address(tensor): name for name, tensor in tensors.items()}
    storages.pop(0, None)  # of tensors that have no storage
    for path, value in walk(teacher, lambda hook: True):
        name = None
        if isinstance(value, nn.Module):
            name = modules.get(id(value))
        elif isinstance(value, Tensor):
            name = objects.get(id(value), storages.get(address(value)))
        if name is not None:
            raise ValueError(
                f'self_distill: a teacher cannot be copied from this model, because '
                f"the copy's {path or type(teacher).__name__!r} is still the "
                f"student's own {type(value).__name__} {name!r}"
            )


@contextmanager
def uncalled(student: nn.Module) -> Iterator[None]:
    """Refuse that a teacher calls modules of its student.

    It may reach one by a global variable or by its class, where :func:`prove_apart`
    does not look: these are no part of a copy.

    Args:
        student (nn.Module): The bare model.

    Raises:
        RuntimeError: If a module of it is called meanwhile.
    """
    modules = {module: path for path, module in student.named_modules()}

    def refuse(module: nn.Module, args: Any) -> None:
        if module in modules:
            raise RuntimeError(
                f"the teacher calls the student's own {type(module).__name__} "
                f'{modules[module]!r}, which it reaches by a global variable or by a '
                'class. Hold the module as an attribute of the model'
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
