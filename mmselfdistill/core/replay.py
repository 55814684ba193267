"""Repeat the calls that a student made, with its teacher."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.containers import replaced, written
from mmselfdistill.core.freeze import compute_weights
from mmselfdistill.core.given import CANNOT, to_replace
from mmselfdistill.core.handed import Handed
from mmselfdistill.core.kept import keeping
from mmselfdistill.core.memory import address, same_part, share_memory
from mmselfdistill.core.recorder import Recording, record
from mmselfdistill.core.standins import LeakError
from mmselfdistill.core.streams import (
    at_precision,
    autocast_to,
    forked_rng,
    set_rng_states,
)
from mmselfdistill.families.plan import Call, Plan
from mmselfdistill.wrapping import Method, resolve


def replay(
    teacher: nn.Module,
    groups: Sequence[Sequence[Call]],
    plan: Plan,
    own: Mapping[int, Any],
    views: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None,
    memory: Mapping[int, tuple[Tensor, Tensor]],
    handed: Handed,
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
        own (Mapping[int, Any]): The teacher's parameters, buffers and modules, by the
            ``id`` of the student's.
        views (Sequence): Pairs of images, as the student and as the teacher sees them.
        dtype (torch.dtype | None): To which the calls are autocast; None: as the
            student's were.
        memory (Mapping): Parameters and buffers of the student, and the teacher's, by
            the address of the student's.
        handed (Handed): Gives the teacher's modules what the student's held.

    Returns:
        list[Call]: The teacher's version of each call: same length and order.

    Raises:
        RuntimeError: If the teacher's calls, or what they return, differ in structure
            from the student's.
    """
    seams = {seam.path: seam for seam in plan.seams}
    recorded = [seam for seam in plan.seams if seam.repeat]
    versions = dict(own)
    # tensors of the student and the teacher, by where the student's are in memory
    returned = dict(memory)
    made: list[Call] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(forked_rng())
        recording = Recording(to_repeat=False)
        theirs = stack.enter_context(record(teacher, recorded, recording))
        stack.enter_context(keeping(teacher, groups, seams))
        for group in groups:
            outer, seam = group[0], seams[group[0].path]
            versions.update(_parts(teacher, plan, outer, versions, returned))
            versions.update(_clean(outer, views))
            args, kwargs = replaced((outer.args, outer.kwargs), versions)
            if not seam.repeat:
                made.append(Call(outer.path, 0, args, kwargs))
                continue
            set_rng_states(outer.rng)
            handed.give(outer.attributes, versions)
            owner, name = resolve(teacher, outer.path)
            with at_precision(autocast_to(dtype) if dtype else outer.precision):
                if name == 'forward':
                    compute_weights(owner, args)
                _called(outer.path, getattr(owner, name), args, kwargs, handed, dtype)
            _check_same(group, theirs)
            for ours, version in _answers(group, theirs):
                versions[id(ours)] = version
                if isinstance(ours, Tensor) and address(ours):
                    returned[address(ours)] = ours, version
            made.extend(theirs)
            theirs.clear()
    return made


def _called(
    path: str,
    method: Method,
    args: Any,
    kwargs: Any,
    handed: Handed,
    dtype: torch.dtype | None,
) -> None:
    try:
        method(*args, **kwargs)
    except (LeakError, *DEVICE_ERRORS):
        raise
    except Exception as error:
        hint = handed.hint(str(error))
        if dtype is not None:
            name = str(dtype).replace('torch.', '')
            hint += f'. It is called with teacher_dtype={name!r}; the student is not'
        raise RuntimeError(
            f'self_distill: the teacher cannot repeat {path}, which the student has '
            f'just called: {type(error).__name__}: {error}{hint}'
        ) from error


def _parts(
    model: nn.Module,
    plan: Plan,
    call: Call,
    versions: Mapping[int, Any],
    returned: Mapping[int, tuple[Tensor, Tensor]],
) -> Iterator[tuple[int, Tensor]]:
    """Yield the teacher's version of parts of what calls returned: slices, views.

    They are arguments, or a module holds them.
    """

    def is_part(value: Any) -> bool:
        if not isinstance(value, Tensor) or id(value) in versions:
            return False
        place = address(value)
        # the data of a parameter may be in another place by now
        return place in returned and address(returned[place][0]) == place

    for value in [v for held in call.attributes for v in held.tensors()]:
        if is_part(value):
            part = same_part(value, *returned[address(value)])
            if part is not None:
                yield id(value), part
    # to ask for the names of arguments takes longer
    if not any(is_part(value) for _, value in call.given):
        return
    for where, value in to_replace(model, plan, call):
        if is_part(value):
            ours, theirs = returned[address(value)]
            part = same_part(value, ours, theirs)
            if part is not None:
                yield id(value), part
            elif address(theirs) != address(ours):
                raise RuntimeError(
                    f'{CANNOT}{call.path}: its argument {where} is a part of what an '
                    "earlier call returned, which the teacher's lays out in another "
                    'way. Pass a copy that is made inside of a recorded call'
                )


def _clean(
    call: Call, views: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield what the teacher sees of each image, or part of one, that a call has."""
    for _, value in call.given if views else ():
        for seen, clean in views:
            if isinstance(value, Tensor) and share_memory(value, seen):
                # either may begin inside of a larger tensor
                start = value.storage_offset() - seen.storage_offset()
                layout = value.size(), value.stride(), clean.storage_offset() + start
                yield id(value), clean.as_strided(*layout)


def _answers(ours: Sequence[Call], theirs: Sequence[Call]) -> Iterator[tuple[Any, Any]]:
    for student, teacher in zip(ours, theirs):
        for (_, one), (_, other) in zip(student.returned, teacher.returned):
            yield one, other


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
