"""Which part of the teacher stands for which of the student while it repeats calls."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any, Iterator, Sequence

from torch import Tensor, nn

from mmselfdistill.core.modes import still
from mmselfdistill.core.teacher import tensors_of
from mmselfdistill.families.plan import Plan, Seam
from mmselfdistill.wrapping import resolve


def own_parts(
    student: nn.Module, teacher: nn.Module, shared: Sequence[str] = ()
) -> list[tuple[Tensor, Tensor]]:
    """Pair the student's parameters and buffers with the teacher's.

    Those of the shared parts are left out: they stay the student's.
    """
    ours, theirs = tensors_of(student), tensors_of(teacher)
    starts = tuple(f'{path}.' for path in shared)
    return [
        (ours[name], theirs[name])
        for name in ours
        if name in theirs and not f'{name}.'.startswith(starts)
    ]


def adopt_parts(student: nn.Module, teacher: nn.Module) -> None:
    """Give the teacher the links between modules that the student made in a forward.

    DDQ's decoder is handed some of its head's branches there. A plain entry keeps the
    keys of the teacher's state_dict as they are.
    """
    paths = {module: path for path, module in student.named_modules()}
    theirs = dict(teacher.named_modules())
    for module, path in paths.items():
        copied: Any = theirs.get(path)
        for name, child in module.named_children():
            # a module that a hook has added has no twin
            twin = theirs.get(paths[child])
            if copied is not None and twin is not None and not hasattr(copied, name):
                vars(copied)[name] = twin


def adopt_exchanged(student: nn.Module, teacher: nn.Module) -> None:
    """Give the teacher copies of what a hook has exchanged and has no weights.

    Such as a loss for the last epochs, or an activation.
    """
    theirs = dict(teacher.named_modules())
    for path, module in student.named_modules():
        twin = theirs.get(path)
        if not path or twin is None or type(twin) is type(module):
            continue
        if not tensors_of(module) and not tensors_of(twin):
            owner, _, name = path.rpartition('.')
            copied = copy.deepcopy(module)
            still(copied)
            theirs[owner]._modules[name] = theirs[path] = copied


@contextmanager
def lend(
    student: nn.Module, teacher: nn.Module, paths: Sequence[str]
) -> Iterator[None]:
    """Let a teacher use the student's parameters of some modules for a while.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): A copy of it.
        paths (Sequence[str]): Dotted paths of parameters, or of modules that hold
            some themselves.
    """
    lent = [_parameters_at(student, path) for path in paths]
    own = [_parameters_at(teacher, path) for path in paths]
    try:
        for (owner, _), (_, parameters) in zip(own, lent):
            owner._parameters.update(parameters)
        yield
    finally:
        for owner, parameters in own:
            owner._parameters.update(parameters)


def _parameters_at(model: nn.Module, path: str) -> tuple[nn.Module, dict[str, Any]]:
    owner, name = resolve(model, path)
    part = getattr(owner, name)
    if isinstance(part, nn.Module):
        return part, dict(part._parameters)
    return owner, {name: part}


def with_named_seams(model: nn.Module, plan: Plan, seams: Sequence[str]) -> Plan:
    """Add the seams that a user names.

    Raises:
        ValueError: If a path leads to no method and to no module.
    """
    modules = dict(model.named_modules())
    found = []
    for path in seams:
        prefix, _, name = path.rpartition('.')
        if path == 'forward':
            raise ValueError('seams: forward is the whole model: name a part of it')
        if path and path in modules:
            found.append(Seam(f'{path}.forward'))
        elif callable(getattr(modules.get(prefix), name, None)):
            found.append(Seam(path))
        else:
            raise ValueError(
                f'seams: {type(model).__name__} has no method or module {path!r}'
            )
    return plan.with_seams(*found)
