"""Which part of the teacher stands for which of the student while it repeats calls."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from mmselfdistill.core.teacher import make_teacher, tensors_of
from mmselfdistill.families.plan import Plan, Seam, Site
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
    """Give the teacher copies of parts without weights that a hook has put in.

    Such as a loss for the last epochs, or an activation, in another's place, or where
    was none. One that is gone, or None by now, is so in the teacher.
    """
    copies: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def follow(ours: nn.Module, theirs: nn.Module) -> None:
        if id(ours) in seen:
            return
        seen.add(id(ours))
        for name in {**ours._modules, **theirs._modules}:
            part, twin = ours._modules.get(name), theirs._modules.get(name)
            if part is not None and type(part) is type(twin):
                follow(part, twin)
            elif _has_weights(part) or _has_weights(twin):
                continue
            elif name not in ours._modules:
                del theirs._modules[name]
            elif part is None:
                theirs._modules[name] = None
            elif name in theirs._modules or getattr(theirs, name, None) is None:
                vars(theirs).pop(name, None)
                if id(part) not in copies:
                    copies[id(part)] = make_teacher(part)
                theirs._modules[name] = copies[id(part)]

    follow(student, teacher)


def _has_weights(part: nn.Module | None) -> bool:
    # a compiled part is run by its own
    compiled = type(part).__module__.startswith('torch._dynamo')
    return part is not None and (compiled or bool(tensors_of(part)))


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


def check_sites(model: nn.Module, sites: Iterable[Site]) -> None:
    """See that a model has the seams that some sites read.

    Raises:
        ValueError: If it has not.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for site in sites:
        for path in site.seams:
            if not _is_method(modules, path):
                raise ValueError(
                    f'terms: the site {site.name!r} reads {path!r}, and '
                    f'{type(model).__name__} has no such method'
                )


def _is_method(modules: Mapping[str, nn.Module], path: str) -> bool:
    prefix, _, name = path.rpartition('.')
    return callable(getattr(modules.get(prefix), name, None))


def with_named_seams(model: nn.Module, plan: Plan, seams: Sequence[str]) -> Plan:
    """Add the seams that a user names.

    Raises:
        ValueError: If a path leads to no method and to no module.
    """
    modules = dict(model.named_modules())
    found = []
    for path in seams:
        if path == 'forward':
            raise ValueError('seams: forward is the whole model: name a part of it')
        if path and path in modules:
            found.append(Seam(f'{path}.forward'))
        elif _is_method(modules, path):
            found.append(Seam(path))
        else:
            raise ValueError(
                f'seams: {type(model).__name__} has no method or module {path!r}'
            )
    return plan.with_seams(*found)
