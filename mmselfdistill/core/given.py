"""What the recorded calls are given: has the teacher its own version of it?"""

from __future__ import annotations

from itertools import chain
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from mmselfdistill.containers import CODE, PLAIN, leaves, written
from mmselfdistill.core.apart import parts
from mmselfdistill.core.memory import address, place
from mmselfdistill.families.plan import Call, Plan, Seam, parameters_of
from mmselfdistill.wrapping import resolve

CANNOT = 'self_distill: the teacher cannot repeat what this model does.\n  '


class Known:
    """What some calls returned, and the parts of it: slices, views, what was detached.

    Args:
        calls (Sequence[Call]): The calls. Defaults to none.
    """

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        self._ids: set[int] = set()
        self._addresses: set[int] = set()
        for call in calls:
            self.add(call)

    def add(self, call: Call) -> None:
        """Add what a call returned."""
        for _, value in call.returned:
            self._ids.add(id(value))
            if isinstance(value, Tensor) and address(value):
                self._addresses.add(address(value))

    def __contains__(self, value: object) -> bool:
        return id(value) in self._ids or (
            isinstance(value, Tensor) and address(value) in self._addresses
        )


def of_the_loss(calls: Sequence[Call]) -> list[Call]:
    """Return calls without those by which a model only samples, or makes targets.

    These run without gradient, and no call of the loss depends on what they return. In
    a pass without any gradient all calls count.
    """
    groups = groups_of(calls)
    if len({group[0].trains for group in groups}) < 2:
        return list(calls)
    wanted: set[int] = set()
    kept: list[list[Call]] = []
    for group in reversed(groups):
        if group[0].trains or not wanted.isdisjoint(returned_by(group)):
            kept.append(group)
            wanted.update(needed_by(group))
    return [call for group in reversed(kept) for call in group]


def returned_by(group: Sequence[Call]) -> Iterator[int]:
    """Yield the marks of what an outermost call returned, and those within it."""
    return _marks(value for call in group for _, value in call.returned)


def needed_by(group: Sequence[Call]) -> Iterator[int]:
    """Yield the marks of what an outermost call depends on.

    That is what it is given, and what the model's modules held: a part may have left
    its features at another.
    """
    outermost = group[0]
    yield from _marks(value for _, value in outermost.given)
    yield from _marks(v for held in outermost.attributes for v in held.tensors())


def _marks(values: Iterable[Any]) -> Iterator[int]:
    """Yield the number of each object, and of the memory of a tensor, if it has any."""
    for value in values:
        yield id(value)
        memory = address(value) if isinstance(value, Tensor) else 0
        if memory:
            # below 0: no id is
            yield -memory


def groups_of(calls: Sequence[Call]) -> list[list[Call]]:
    """Return each outermost call with those that were made within it."""
    groups: list[list[Call]] = []
    for call in calls:
        if call.depth == 0:
            groups.append([])
        groups[-1].append(call)
    return groups


def to_replace(model: nn.Module, plan: Plan, call: Call) -> Iterator[tuple[str, Any]]:
    """Yield what a call is given of which the teacher uses its own version.

    That is all but what the plan keeps, and nothing of calls within another: they note
    nothing.

    Yields:
        tuple[str, Any]: How it is written, and the value.
    """
    seam = next((s for s in plan.seams if s.path == call.path), None)
    method = getattr(*resolve(model, call.path))
    names = parameters_of(method) or ['args']
    for (kind, key, *rest), value in call.given:
        argument = key
        if kind == 0:
            last = f'{names[-1]}[{key}]'
            argument = names[key] if key < len(names) else last
        if seam is None or argument not in seam.keep:
            yield f'{argument}{written(tuple(rest))}', value


def unknown(path: str, where: str, value: Tensor, on: str) -> str:
    """Say that a call is given what depends on weights, and no call returned."""
    function = (
        type(value.grad_fn).__name__ if value.requires_grad else 'without gradient'
    )
    return (
        f'{path}: its argument {where} {tuple(value.shape)} depends on {on}, and was '
        f'made by a function ({function}) between two recorded calls: the teacher '
        "would be given the student's. Put that computation into a module of its own, "
        'or into a method that is named as a seam: '
        "seams=['path.of.the.method']"
    )


def hidden_in(plan: Plan, call: Call, known: Known) -> list[str]:
    """Refuse tensors in arguments where the teacher's cannot be put.

    That is inside of objects that are called, arrays of objects, weak references, keys
    of a dict, and methods of a tensor.
    """
    seam = next((s for s in plan.seams if s.path == call.path), Seam(call.path))
    if call.depth > 0 or seam.keep or not seam.repeat:
        return []
    data = call.args, call.kwargs
    seen = {id(value) for _, value in leaves(data)}
    hidden = [tensor for tensor in _all_in(data) if id(tensor) not in seen]
    if not any(needs_version(tensor) or tensor in known for tensor in hidden):
        return []
    return [
        f'{call.path}: a tensor that depends on weights is hidden in what it is given, '
        'such as in an object that is called, a key or a weak reference: the '
        "teacher's cannot be put there. Pass the tensor itself"
    ]


def _all_in(data: Any) -> Iterator[Tensor]:
    """Yield all tensors in arguments, those of modules and functions left out."""
    seen: dict[int, Any] = {}
    stack = [data]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, (*CODE, *PLAIN)):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, np.ndarray):
            stack += value.flat if value.dtype == object else ()
        else:
            stack += [part for _, part in parts(value, lambda hook: False)]


def check_given(
    model: nn.Module, plan: Plan, calls: Sequence[Call], errors: Sequence[str]
) -> None:
    """See that what held in the first iteration holds in this one.

    Args:
        model (nn.Module): The student.
        plan (Plan): How it is recorded.
        calls (Sequence[Call]): Its calls in this iteration.
        errors (Sequence[str]): What was found of them already.

    Raises:
        RuntimeError: If there is an error, or a call is given what depends on weights,
            and no call returned.
    """
    found, known = list(errors), Known()
    weights: set[Any] = set()
    for call in calls:
        # to ask for the names of arguments takes longer than to see that all is well
        values = [v for _, v in call.given if needs_version(v) and v not in known]
        if values and not weights:
            weights = {place(p) for p in chain(model.parameters(), model.buffers())}
        for value in values:
            for where, each in to_replace(model, plan, call):
                # of a part of a weight, the teacher has its own
                if each is value and place(value) not in weights:
                    found.append(unknown(call.path, where, value, 'weights'))
        known.add(call)
    if found:
        raise RuntimeError(
            CANNOT
            + '\n  '.join(dict.fromkeys(found))
            + '\n  It was not so in the first iteration.'
        )


def needs_version(value: Any) -> bool:
    """Say whether the teacher needs its own version of a value by its gradient."""
    # a leaf is a parameter, or an image whose gradient is asked for; of an empty one,
    # both sides have the same
    made = isinstance(value, Tensor) and value.grad_fn is not None
    return made and value.numel() > 0
