"""Record the calls by which a model computes its loss; a teacher repeats them."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmselfdistill.containers import leaves, replaced, snapshot, written
from mmselfdistill.core.kept import keeping
from mmselfdistill.core.streams import forked_rng, rng_states, set_rng_states
from mmselfdistill.core.traced import share_memory
from mmselfdistill.core.wrapping import Method, resolve, wrapped
from mmselfdistill.families.plan import Call, Plan, Seam


@dataclass
class Recording:
    """The calls of a forward pass, while it is made.

    Args:
        calls (list[Call]): Those that have begun, in order.
        depth (int): The number of seams that are being called at this moment.
        trains (bool): Whether gradients were on at its begin. A call that turns them
            off, to sample or to label, is no part of the loss, and is not recorded.
        watch (Callable): Is called with each outermost call at its begin, and again
            with its end. Defaults to nothing.
    """

    calls: list[Call] = field(default_factory=list)
    depth: int = 0
    trains: bool = field(default_factory=torch.is_grad_enabled)
    watch: Callable[[Call, bool], None] = lambda call, ended: None


@contextmanager
def record(
    model: nn.Module, seams: Sequence[Seam], recording: Recording | None = None
) -> Iterator[list[Call]]:
    """Record every call of the seams, in the order in which they begin.

    The methods are replaced on these objects alone, and put back at the end, whatever
    ends it: between two recordings the model can be copied, pickled and compiled.

    Yields:
        list[Call]: The calls; it grows while the model runs.
    """
    recording = recording or Recording()
    wrappers = {
        seam.path: partial(_recording, seam, _state_of(model, seam), recording)
        for seam in seams
    }
    with wrapped(model, wrappers):
        yield recording.calls


def _state_of(model: nn.Module, seam: Seam) -> dict[str, Any]:
    if not seam.state:
        return {}
    state: dict[str, Any] = getattr(resolve(model, seam.path)[0], seam.state)
    return state


def _recording(
    seam: Seam, state: dict[str, Any], recording: Recording, method: Method
) -> Method:
    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        outermost = recording.depth == 0
        if outermost and recording.trains and not torch.is_grad_enabled():
            return method(*args, **kwargs)
        # a module in the state is the model's own: the teacher has another
        held = {k: v for k, v in state.items() if not isinstance(v, nn.Module)}
        rng = rng_states() if outermost else []
        given = (snapshot(args), snapshot(kwargs))
        call = Call(seam.path, recording.depth, *given, rng, snapshot(held))
        if outermost:
            recording.watch(call, False)
        recording.calls.append(call)
        recording.depth += 1
        try:
            output = method(*args, **kwargs)
        finally:
            recording.depth -= 1
        call.end(output)
        if outermost:
            recording.watch(call, True)
        return output

    return wrapper


def groups_of(calls: Sequence[Call]) -> list[list[Call]]:
    """Return each outermost call with those that were made within it."""
    groups: list[list[Call]] = []
    for call in calls:
        if call.depth == 0:
            groups.append([])
        groups[-1].append(call)
    return groups


def slice_back(
    calls: Sequence[Call], paths: Collection[str], always: Collection[str] = ()
) -> list[list[Call]]:
    """Return the outermost calls that some seams depend on, with what is within.

    Args:
        calls (Sequence[Call]): What :func:`record` recorded.
        paths (Collection[str]): The seams that are to be read.
        always (Collection[str]): Seams that are needed wherever any is.

    Returns:
        list[list[Call]]: Groups of calls, in order.
    """
    wanted: set[int] = set()
    needed: list[list[Call]] = []
    for group in reversed(groups_of(calls)):
        read = any(call.path in paths or call.path in always for call in group)
        if read or any(
            id(value) in wanted for call in group for _, value in call.returned
        ):
            needed.append(group)
            outer = group[0]
            given = leaves((outer.args, outer.kwargs, outer.state))
            wanted.update(id(value) for _, value in given)
    return needed[::-1]


def replay(
    teacher: nn.Module,
    groups: Sequence[Sequence[Call]],
    plan: Plan,
    own: Mapping[int, Any],
    views: Sequence[tuple[Tensor, Tensor]] = (),
) -> list[Call]:
    """Let the teacher make the student's calls.

    Each outermost call is repeated in order, without gradient and from the random state
    in which the student's began. Every value that came out of an earlier call, or is a
    parameter or buffer of the student, is replaced by the teacher's version of it;
    everything else is the student's own: RoIs, queries, noise, samples. The generators
    are left as they were found.

    Args:
        teacher (nn.Module): A copy of the recorded model.
        groups (Sequence): The calls to repeat: see :func:`slice_back`.
        plan (Plan): Says what of them the teacher makes, and what stays the student's.
        own (Mapping[int, Any]): The teacher's parameters and buffers, by the ``id`` of
            the student's.
        views (Sequence): Pairs of images, as the student and as the teacher sees them.
            Defaults to (): both see the same.

    Returns:
        list[Call]: The teacher's version of each call: same length and order.

    Raises:
        RuntimeError: If the teacher's calls, or what they return, differ in structure
            from the student's.
    """
    seams = {seam.path: seam for seam in plan.seams}
    recorded = [seam for seam in plan.seams if seam.repeat]
    versions = dict(own)
    made: list[Call] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(forked_rng())
        theirs = stack.enter_context(record(teacher, recorded))
        stack.enter_context(keeping(teacher, groups, seams))
        for group in groups:
            outer, seam = group[0], seams[group[0].path]
            versions.update(_clean((outer.args, outer.kwargs, outer.state), views))
            given = [replaced(each, versions) for each in (outer.args, outer.kwargs)]
            if not seam.repeat:
                made.append(Call(outer.path, 0, *given))
                continue
            set_rng_states(outer.rng)
            owner, name = resolve(teacher, outer.path)
            if outer.state:
                getattr(owner, seam.state).update(replaced(outer.state, versions))
            getattr(owner, name)(*given[0], **given[1])
            _check_same(group, theirs)
            for call, version in zip(group, theirs):
                versions.update(_versions(call, version))
            made.extend(theirs)
            theirs.clear()
    return made


def _clean(
    given: Any, views: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield what the teacher sees of each image, or part of one, that a call has."""
    for _, value in leaves(given) if views else ():
        for seen, clean in views:
            if isinstance(value, Tensor) and share_memory(value, seen):
                layout = value.size(), value.stride(), value.storage_offset()
                yield id(value), clean.as_strided(*layout)


def _versions(ours: Call, theirs: Call) -> Iterator[tuple[int, Any]]:
    for (_, student), (_, teacher) in zip(ours.returned, theirs.returned):
        yield id(student), teacher


def _check_same(ours: Sequence[Call], theirs: Sequence[Call]) -> None:
    wanted = [(call.path, call.depth) for call in ours]
    found = [(call.path, call.depth) for call in theirs]
    if wanted != found:
        raise RuntimeError(
            "The teacher did not repeat the student's calls: the student made "
            f'{wanted}, the teacher {found}. A seam must not be called from another '
            'one in some iterations only.'
        )
    for student, teacher in zip(ours, theirs):
        if _structure(student) != _structure(teacher):
            given, got = [_written(call) for call in (student, teacher)]
            raise RuntimeError(
                f"The teacher's {student.path} did not return what the student's did: "
                f'the student {given}, the teacher {got}.'
            )


def _structure(call: Call) -> list[tuple[Any, type]]:
    return [(path, type(value)) for path, value in call.returned]


def _written(call: Call) -> list[str]:
    return [f'{kind.__name__} at {written(path)}' for path, kind in _structure(call)]
