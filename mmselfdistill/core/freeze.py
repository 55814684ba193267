"""Makes the teacher: a copy of the student that shares nothing, and is still."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections import OrderedDict
from typing import Any, Callable, Collection, Dict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .apart import HOOKS, SHARED, contents, parts, prove_apart, walk
from .modes import still
from .streams import copied

Hook = Callable[..., Any]

# hooks that compute a weight before the call: without them a copy is another model
_WEIGHT_HOOKS = (SpectralNorm, WeightNorm, BasePruningMethod)
_LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}


def compute_weights(module: nn.Module, args: Any) -> None:
    """Compute what a module's hooks make of its weights, where ``forward`` is called.

    They run by themselves only where the module is called.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _WEIGHT_HOOKS):
            hook(module, args)


def make_teacher(student: nn.Module, hooks: Collection[Hook] = ()) -> nn.Module:
    """Copy a model into a teacher that has no gradient and does not change.

    The student is left as it is. The copy shares no module and no tensor with it.
    Functions that were put on a module, such as a wrapped ``forward``, are built
    again around the copy's own modules. Hooks of the student are left out, because
    their effects would happen twice; those that compute a weight (spectral norm,
    weight norm, pruning) stay.

    Args:
        student (nn.Module): The bare model, not its DDP wrapper.
        hooks (Collection[Callable]): Hooks of the student that its outputs depend
            on, and that the teacher shall have too. Defaults to ``()``.

    Returns:
        nn.Module: The teacher, on the student's device.

    Raises:
        ValueError: If a part of the model cannot be copied.
    """
    for name, parameter in student.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f'self_distill: a teacher cannot be copied from this model, because '
                f'its parameter {name!r} has no shape before the first forward'
            )
    teacher = _copy(student, hooks)
    teacher.requires_grad_(False)
    teacher.zero_grad(set_to_none=True)
    still(teacher)
    prove_apart(teacher, student)
    return teacher


def check_same_weights(teacher: nn.Module, student: nn.Module) -> None:
    """See that a student has made no weights since its teacher was copied.

    Raises:
        RuntimeError: If it has.
    """
    theirs = dict(teacher.named_parameters(remove_duplicate=False))
    for name, _ in student.named_parameters(remove_duplicate=False):
        if name not in theirs:
            raise RuntimeError(
                f'self_distill: {name!r} was made in the first iteration: the teacher, '
                'which was copied before, would begin with another. Make it where the '
                'model is built'
            )


def add_hooks(teacher: nn.Module, student: nn.Module, hooks: Collection[Hook]) -> None:
    """Give a teacher that is there hooks of the student, as :func:`make_teacher` does.

    Args:
        teacher (nn.Module): A copy of the student.
        student (nn.Module): Has the hooks.
        hooks (Collection[Callable]): Those that return new values: they are a part of
            the model.
    """
    copies, ours = _Copies(student, hooks), dict(teacher.named_modules())
    pairs = [
        (module, ours[path])
        for path, module in student.named_modules()
        # one without weights may have been made since
        if path in ours
    ]
    for module, twin in pairs:
        copies[id(module)] = twin
        for held in ('_parameters', '_buffers'):
            for name, tensor in vars(module)[held].items():
                copies[id(tensor)] = vars(twin)[held].get(name)
    for module, twin in pairs:
        for name, companions in HOOKS.items():
            for key, hook in vars(module)[name].items():
                if copies.keeps(hook):
                    vars(twin)[name][key] = copies.copied(hook)
                    for each in companions:
                        flags = vars(module)[each]
                        if key in flags:
                            vars(twin)[each][key] = flags[key]
    copies.forget()


def _copy(student: nn.Module, hooks: Collection[Hook]) -> nn.Module:
    copies = _Copies(student, hooks)
    try:
        teacher: nn.Module = copies.copied(student)
        copies.put_functions()
    except Exception as error:
        raise ValueError(_reason(student, hooks, error)) from error
    finally:
        copies.forget()
    return teacher


def _reason(student: nn.Module, hooks: Collection[Hook], error: Exception) -> str:
    begin = 'self_distill: a teacher cannot be copied from this model, because'
    copies = _Copies(student, hooks)
    copies.update((id(module), module) for module in student.modules())
    for path, module in student.named_modules():
        for suffix, value in parts(module, copies.keeps):
            try:
                copies.copied(value)
            except Exception as cause:
                return (
                    f'{begin} {suffix[1:]!r} of {type(module).__name__} {path!r}, a '
                    f'{type(value).__name__}, cannot be: {_line(cause)}'
                )
    return f'{begin} copying its {type(student).__name__} fails: {_line(error)}'


def _line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


class _Copies(Dict[int, Any]):
    """The memo of a deep copy, which also makes what ``deepcopy`` shares or refuses.

    ``deepcopy`` asks its memo first. So here is answered, when it asks, for:
    functions, which it shares with all that they enclose; tensors with a history,
    locks, and process groups, which it refuses; loggers, which are to be shared; and
    the hooks of modules, which are to be left out.

    Args:
        student (nn.Module): What will be copied. It is not changed.
        hooks (Collection[Callable]): The hooks that are not left out.
    """

    def __init__(self, student: nn.Module, hooks: Collection[Hook]) -> None:
        super().__init__()
        self._hooks = tuple(hooks)
        self._own = {id(value) for _, value in walk(student, lambda hook: False)}
        self._special: dict[int, tuple[Any, Callable[[Any], Any]]] = {}
        self._modules: list[nn.Module] = []
        for _, value in walk(student, self.keeps):
            if isinstance(value, nn.Module):
                self._modules.append(value)
                self._leave_hooks_out(value)
            make = self._maker(value)
            if make is not None:
                self._special[id(value)] = value, make

    def get(self, key: int, default: Any = None) -> Any:
        """Return the copy of the object of this number, if there is one."""
        if key not in self and key in self._special:
            value, make = self._special[key]
            self[key] = make(value)
        return super().get(key, default)

    def copied(self, value: Any) -> Any:
        """Return the copy of an object."""
        found = self.get(id(value), self)
        return copy.deepcopy(value, self) if found is self else found

    def keeps(self, hook: Any) -> bool:
        """Say whether the teacher has this hook of the student."""
        method = hook.func if isinstance(hook, functools.partial) else hook
        # the model itself takes its features by such a hook
        if id(getattr(method, '__self__', None)) in self._own:
            return True
        if isinstance(hook, types.MethodType):
            return hook in self._hooks  # each access makes another, which is equal
        known = isinstance(hook, _WEIGHT_HOOKS)
        return known or any(hook is each for each in self._hooks)

    def put_functions(self) -> None:
        """Put functions where ``deepcopy`` did not ask: since Python 3.14."""
        for module in self._modules:
            ours = super().get(id(module))
            for name, value in vars(module).items():
                if ours is not None and id(value) in self._special:
                    vars(ours)[name] = self.copied(value)

    def forget(self) -> None:
        """Let go of both models, which else would wait for the garbage collector."""
        self._special.clear()
        self.clear()

    def _leave_hooks_out(self, module: nn.Module) -> None:
        for name, companions in HOOKS.items():
            hooks = vars(module).get(name, {})
            kept = {key for key, hook in hooks.items() if self.keeps(hook)}
            for each in (name, *companions):
                whole = vars(module).get(each)
                if whole is not None:
                    make = functools.partial(self._some_items, kept=kept)
                    self._special[id(whole)] = whole, make

    def _some_items(self, items: dict[int, Any], kept: set[int]) -> dict[int, Any]:
        some = self[id(items)] = OrderedDict()
        some.update((key, self.copied(items[key])) for key in items if key in kept)
        return some

    def _maker(self, value: Any) -> Callable[[Any], Any] | None:
        if isinstance(value, SHARED):
            return lambda shared: shared
        if isinstance(value, torch.Generator):
            return copied
        if type(value) in _LOCKS:
            return lambda lock: _LOCKS[type(lock)]()
        if isinstance(value, Tensor):
            return None if value.is_leaf else lambda tensor: tensor.detach().clone()
        if isinstance(value, types.FunctionType) and self._reaches(value):
            return self._function
        if isinstance(value, types.MethodType) and self._reaches(value.__func__):
            return self._method
        if isinstance(value, weakref.ref) and isinstance(value(), nn.Module):
            return lambda ref: weakref.ref(self.copied(ref()))
        if type(value) is functools.partial:
            return self._partial
        return None

    def _reaches(self, function: Any) -> bool:
        below = walk(function, self.keeps)
        return any(isinstance(value, (nn.Module, Tensor)) for _, value in below)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        name, scope = function.__name__, function.__globals__
        ours = types.FunctionType(function.__code__, scope, name, None, cells)
        self[id(function)] = ours  # before what it encloses, which may hold it
        for mine, cell in zip(cells, function.__closure__ or ()):
            for item in contents(cell):
                mine.cell_contents = self.copied(item)
        ours.__defaults__ = self.copied(function.__defaults__)
        ours.__kwdefaults__ = self.copied(function.__kwdefaults__)
        ours.__annotations__ = function.__annotations__
        ours.__qualname__ = function.__qualname__
        ours.__module__ = function.__module__
        ours.__doc__ = function.__doc__
        ours.__dict__.update(
            (key, self.copied(item)) for key, item in vars(function).items()
        )
        return ours

    def _cell(self, cell: types.CellType) -> types.CellType:
        # two functions may enclose one variable
        if id(cell) not in self:
            self[id(cell)] = types.CellType()
        return self[id(cell)]

    def _method(self, method: types.MethodType) -> types.MethodType:
        function = self.copied(method.__func__)
        return types.MethodType(function, self.copied(method.__self__))

    def _partial(self, partial: functools.partial[Any]) -> functools.partial[Any]:
        args = [self.copied(each) for each in partial.args]
        keywords = {key: self.copied(each) for key, each in partial.keywords.items()}
        ours = functools.partial(self.copied(partial.func), *args, **keywords)
        vars(ours).update((key, self.copied(v)) for key, v in vars(partial).items())
        return ours
