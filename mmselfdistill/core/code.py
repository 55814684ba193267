"""What a student's modules run: their classes, and what was put over their methods."""

from __future__ import annotations

import functools
import types
from inspect import getattr_static
from typing import Any

from torch import nn

from mmselfdistill.core.attributes import holds_nothing

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


class Code:
    """Watches that a teacher runs what its student runs.

    A function that takes a method's place in the run, or another class of a module,
    changes the student alone.

    Args:
        student (nn.Module): The bare model.
        teacher (nn.Module): A copy of it.

    Raises:
        RuntimeError: If the student was changed since the copy was made.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        theirs = dict(teacher.named_modules())
        self._modules = [
            (path, module)
            for path, module in student.named_modules()
            # the model's own forward is ours, and a compiler changes no result
            if path
            and path in theirs
            and not type(module).__module__.startswith('torch._dynamo')
        ]
        self._methods = [_methods(module) for _, module in self._modules]
        for (path, module), methods in zip(self._modules, self._methods):
            known = _methods(theirs[path])
            same = all(
                _code(known.get(name)) == _code(methods[name]) for name in methods
            )
            if type(module) is not type(theirs[path]) or not same:
                raise _changed(path, module)
        self._before = [_state(module) for _, module in self._modules]

    def check(self) -> None:
        """Look again.

        Raises:
            RuntimeError: If the student was changed since.
        """
        now = [_state(module) for _, module in self._modules]
        if now == self._before:
            return
        rows = zip(self._modules, now, self._before, self._methods)
        for (path, module), state, before, methods in rows:
            if state[0] is not before[0] or methods != _methods(module):
                raise _changed(path, module)
        self._before = now


def _state(module: nn.Module) -> tuple[type, Any, int]:
    # one attribute more may be a method: it is cheap to count them
    held = vars(module)
    return type(module), held.get('forward'), len(held)


def _methods(module: nn.Module) -> dict[str, Any]:
    """Return the functions that a module has in place of its class's methods."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _FUNCTIONS)
        and _is_method(getattr_static(type(module), name, None))
        and name != '_compiled_call_impl'
        # the teacher is given such a one, as it is given numbers
        and not holds_nothing(value)
    }


def _is_method(value: Any) -> bool:
    # a cached property is none: the class computes it when it is first asked for
    return callable(value) or isinstance(value, (classmethod, staticmethod))


def _code(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, '__func__', value)
    return getattr(value, '__code__', value)


def _changed(path: str, module: nn.Module) -> RuntimeError:
    return RuntimeError(
        f'self_distill: the student runs other code than its teacher: {path!r} '
        f'({type(module).__name__}) was given a method or a class after the teacher '
        "was made. Do so in the config, or before the run's hooks start"
    )
