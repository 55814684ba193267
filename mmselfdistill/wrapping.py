"""Methods and hooks of a model, wrapped for a while."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping

import torch
from torch import nn

Method = Callable[..., Any]


def uncompiled(function: Method) -> Method:
    """Return a function that a compiler does not look into: it records calls."""
    if 'torch._dynamo' not in sys.modules:
        return function  # nothing is compiled yet, and to load it takes a second
    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def resolve(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that owns a seam, and the attribute's name on it.

    Raises:
        AttributeError: If the model has no such module or attribute.
    """
    prefix, _, name = path.rpartition('.')
    owner = model.get_submodule(prefix)
    getattr(owner, name)
    return owner, name


@contextmanager
def wrapped(
    model: nn.Module, wrappers: Mapping[str, Callable[[Method], Method]]
) -> Iterator[None]:
    """Wrap some methods of a model, by their paths, for a while.

    They are replaced on these objects alone, and put back whatever ends it.
    """
    owners = {path: resolve(model, path) for path in wrappers}
    originals = [owner.__dict__.get(name) for owner, name in owners.values()]
    try:
        for path, (owner, name) in owners.items():
            owner.__dict__[name] = uncompiled(wrappers[path](getattr(owner, name)))
        yield
    finally:
        for (owner, name), original in zip(owners.values(), originals):
            if original is None:
                # two paths may lead to one module
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = original


@contextmanager
def observed_hooks(
    module: nn.Module, acting: list[Callable[..., Any]]
) -> Iterator[None]:
    """Note which of a module's own forward hooks return a new value."""

    def observed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            if result is not None and hook not in acting:
                acting.append(hook)
            return result

        return wrapper

    tables = (module._forward_hooks, module._forward_pre_hooks)
    originals = [dict(table) for table in tables]
    for table in tables:
        for key, hook in table.items():
            table[key] = uncompiled(observed(hook))
    try:
        yield
    finally:
        for table, original in zip(tables, originals):
            table.update({k: h for k, h in original.items() if k in table})
