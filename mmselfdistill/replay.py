"""Record the calls by which a model computes its loss, and repeat them with a teacher.

A *seam* is the dotted path of a method or module of the model, such as
``extract_feat``, ``roi_head._bbox_forward`` or ``decode_head.0.forward``. This
module knows no model family: it is told the seams.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from mmengine.structures import BaseDataElement
from mmengine.utils import apply_to
from torch import Tensor, nn

Method = Callable[..., Any]


@dataclass
class Call:
    """One call of a seam.

    Args:
        path (str): The seam's dotted path.
        depth (int): The number of recorded calls it was made within.
        args (tuple): Positional arguments. Containers are copied as they were
            at the call, tensors and other objects are the very same.
        kwargs (dict): Keyword arguments, likewise.
        rng (list[Tensor]): The generators' states in which it began.
        state (dict): What it was told besides its arguments: see :func:`record`.
        output (Any): What it returned, likewise. Defaults to None.
    """

    path: str
    depth: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: list[Tensor] = field(repr=False)
    state: dict[str, Any] = field(default_factory=dict, repr=False)
    output: Any = None


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
def record(
    model: nn.Module,
    seams: Sequence[str],
    state: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Call]]:
    """Record every call of the seams, in the order in which they begin.

    The methods are replaced on these objects alone, and put back at the end:
    between two recordings the model can be copied, pickled and compiled.

    Args:
        model (nn.Module): The model.
        seams (Sequence[str]): Dotted paths of the seams.
        state (Mapping[str, str]): For seams that read more than their arguments,
            the attribute of the seam's owner: a dict that other parts of the
            model fill before the call. Defaults to none.

    Yields:
        list[Call]: The calls; it grows while the model runs.
    """
    calls: list[Call] = []
    # the number of seams being called at this moment, shared by all wrappers
    depth = [0]

    def recording(path: str, method: Method) -> Method:
        told = getattr(resolve(model, path)[0], state[path]) if path in state else {}
        return _recording(path, method, calls, depth, told)

    with _wrapped(model, seams, recording):
        yield calls


@contextmanager
def _wrapped(
    model: nn.Module, paths: Sequence[str], wrap: Callable[[str, Method], Method]
) -> Iterator[None]:
    owners = [resolve(model, path) for path in paths]
    originals = [owner.__dict__.get(name) for owner, name in owners]
    try:
        for path, (owner, name) in zip(paths, owners):
            owner.__dict__[name] = wrap(path, getattr(owner, name))
        yield
    finally:
        for (owner, name), original in zip(owners, originals):
            if original is None:
                # two paths may lead to one module
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = original


def _recording(
    path: str,
    method: Method,
    calls: list[Call],
    depth: list[int],
    told: dict[str, Any],
) -> Method:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        rng = _rng_states() if depth[0] == 0 else []
        # a module in the dict is the model's own: the teacher has another
        state = {k: v for k, v in told.items() if not isinstance(v, nn.Module)}
        call = Call(
            path, depth[0], _snapshot(args), _snapshot(kwargs), rng, _snapshot(state)
        )
        calls.append(call)
        depth[0] += 1
        try:
            output = method(*args, **kwargs)
        finally:
            depth[0] -= 1
        call.output = _snapshot(output)
        return output

    return wrapper


def replay(
    teacher: nn.Module,
    calls: Sequence[Call],
    seams: Sequence[str],
    observed: Sequence[str] = (),
    state: Mapping[str, str] = MappingProxyType({}),
    kept: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Call]:
    """Let the teacher make the student's calls.

    Each outermost call is repeated in order, without gradient and from the
    random state in which the student's began. A tensor argument (or a data
    element, such as InstanceData) that came out of an earlier recorded call is
    replaced by the teacher's version of it; everything else is the student's
    own: RoIs, queries, noise, samples. The generators are left as they were
    found.

    Args:
        teacher (nn.Module): A copy of the recorded model.
        calls (Sequence[Call]): What :func:`record` recorded.
        seams (Sequence[str]): The seams that were recorded.
        observed (Sequence[str]): Seams of which only the arguments matter: the
            teacher does not make these calls, its version of them holds its
            arguments and no output. Defaults to ().
        state (Mapping[str, str]): As it was recorded. Defaults to none.
        kept (Mapping[str, Sequence[str]]): Seams that are called inside others,
            and the names of those keyword arguments that stay the student's: what
            the teacher would choose for itself. Outside of others the teacher does
            not make these calls. Defaults to none.

    Returns:
        list[Call]: The teacher's version of each call: same length and order.

    Raises:
        RuntimeError: If the teacher's calls differ from the student's.
    """
    teachers: dict[int, Any] = {}
    made: list[Call] = []
    repeated = [path for path in seams if path not in observed]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_forked_rng())
        own = stack.enter_context(record(teacher, repeated))
        stack.enter_context(_keeping(teacher, calls, kept))
        for call in calls:
            if call.depth > 0:
                continue
            args = _substitute(call.args, teachers)
            kwargs = _substitute(call.kwargs, teachers)
            if call.path in observed or call.path in kept:
                made.append(Call(call.path, 0, args, kwargs, []))
                continue
            _set_rng_states(call.rng)
            owner, name = resolve(teacher, call.path)
            if call.state:
                told = getattr(owner, state[call.path])
                told.update(_substitute(call.state, teachers))
            output = getattr(owner, name)(*args, **kwargs)
            pairs = zip(_values_in(call.output), _values_in(output))
            teachers.update((id(ours), theirs) for ours, theirs in pairs)
            made.extend(own)
            own.clear()
    _check_same(calls, made)
    return made


@contextmanager
def _keeping(
    teacher: nn.Module, calls: Sequence[Call], kept: Mapping[str, Sequence[str]]
) -> Iterator[None]:
    def keeping(path: str, method: Method) -> Method:
        inside = iter([call for call in calls if call.path == path and call.depth > 0])

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # where the teacher makes more calls, the check at the end says so
            ours = next(inside, None)
            if ours is not None:
                kwargs.update({name: ours.kwargs[name] for name in kept[path]})
            return method(*args, **kwargs)

        return wrapper

    with _wrapped(teacher, [*kept], keeping):
        yield


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
    borrowed = [_parameters_at(teacher, path) for path in paths]
    try:
        for (owner, _), (_, parameters) in zip(borrowed, lent):
            owner._parameters.update(parameters)
        yield
    finally:
        for owner, parameters in borrowed:
            owner._parameters.update(parameters)


def _parameters_at(model: nn.Module, path: str) -> tuple[nn.Module, dict[str, Any]]:
    owner, name = resolve(model, path)
    part = getattr(owner, name)
    if isinstance(part, nn.Module):
        return part, dict(part._parameters)
    return owner, {name: part}


def tensors_in(data: Any) -> list[Tensor]:
    """List the tensors in nested dicts, lists and tuples, in order."""
    found: list[Tensor] = []
    apply_to(data, lambda x: isinstance(x, Tensor), found.append)
    return found


def _values_in(data: Any) -> list[Any]:
    found: list[Any] = []
    apply_to(data, lambda x: isinstance(x, (Tensor, BaseDataElement)), found.append)
    return found


def _snapshot(data: Any) -> Any:
    # a RoI head adds keys to the dict that its seam returned
    return apply_to(data, lambda x: False, lambda x: x)


def _substitute(data: Any, teachers: dict[int, Any]) -> Any:
    return apply_to(data, lambda x: id(x) in teachers, lambda x: teachers[id(x)])


def _check_same(calls: Sequence[Call], made: Sequence[Call]) -> None:
    ours = [(call.path, call.depth) for call in calls]
    theirs = [(call.path, call.depth) for call in made]
    if ours != theirs:
        raise RuntimeError(
            "The teacher did not repeat the student's calls: the student made "
            f'{ours}, the teacher {theirs}. A seam must not be called from '
            'another one in some iterations only.'
        )


def _rng_states() -> list[Tensor]:
    # both are kept on the host: reading them does not wait for the device
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return states


def _set_rng_states(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


@contextmanager
def _forked_rng() -> Iterator[None]:
    states = _rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)
