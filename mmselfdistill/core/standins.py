"""Calls of frozen modules: recorded in the student, answered in its teacher."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from functools import partial
from typing import Any, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmselfdistill.containers import PLAIN, flat, replaced, snapshot, tensors_in
from mmselfdistill.core.frozen import is_plain
from mmselfdistill.core.streams import drawn_since, rng_states
from mmselfdistill.core.watch import Watch
from mmselfdistill.wrapping import Method, wrapped


class FrozenCall:
    """A call of a frozen module by the student, as the teacher's is answered.

    Each tensor that it returned has a stand-in: the tensor itself, detached, or one
    without storage. The arguments are kept with the stand-ins of what earlier calls
    returned: these are the very objects that the teacher's module will be given.

    Args:
        path (str): The module's path.
        given (tuple): Its arguments, positional and by name.
        outside (Sequence[Tensor]): Tensors in them that no earlier call returned.

    Attributes:
        answer (Any): What it returned, with stand-ins.
        stand_ins (list[Tensor]): Those in it that are its own.
        versions (list[int]): How often each tensor that it returned was changed.
        gone (bool): Whether a later frozen module has changed one in place.
    """

    def __init__(self, path: str, given: Any, outside: Sequence[Tensor]) -> None:
        self.path = path
        self.given = given
        self.answer: Any = None
        self.stand_ins: list[Tensor] = []
        self.versions: list[int] = []
        self.gone = False
        self._outside = [(tensor, tensor._version) for tensor in outside]

    def is_valid(self) -> bool:
        """Say whether nothing else has changed what it was given and returned."""
        pairs = zip(self.stand_ins, self.versions)
        return all(t._version == version for t, version in self._outside) and all(
            t.is_meta or t._version == version for t, version in pairs
        )


class FrozenCalls:
    """Records the outermost calls of frozen modules in one forward pass.

    Args:
        paths (Mapping[str, bool]): The modules, and whether the teacher needs the
            numbers that they return.
        exact (bool): Whether calls that draw random numbers are left out. Defaults to
            False.

    Attributes:
        calls (list[FrozenCall]): The calls, in order.
    """

    def __init__(self, paths: Mapping[str, bool], exact: bool = False) -> None:
        self.calls: list[FrozenCall] = []
        self._paths = paths
        self._exact = exact
        self._inside = False
        # of what they returned: by the id, which may be another's by now
        self._made: dict[int, tuple[weakref.ref[Tensor], FrozenCall, int]] = {}

    @contextmanager
    def recorded(self, student: nn.Module) -> Iterator[None]:
        """Record what is called meanwhile."""
        wrappers = {
            f'{path}.forward': partial(self._noting, path) for path in self._paths
        }
        with wrapped(student, wrappers):
            yield

    def _noting(self, path: str, forward: Method) -> Method:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = None if self._inside else plain_tensors((args, kwargs))
            if given is None or any(tensor.requires_grad for tensor in given):
                return forward(*args, **kwargs)
            rng = rng_states() if self._exact else []
            before = snapshot((args, kwargs))
            links = self._links(given)
            outside = [tensor for tensor in given if id(tensor) not in links]
            call = FrozenCall(path, replaced((args, kwargs), links), outside)
            versions = [tensor._version for tensor in given]
            self._inside = True
            try:
                output = forward(*args, **kwargs)
            finally:
                self._inside = False
            changed = [t for t, v in zip(given, versions) if t._version != v]
            self._note_changes(changed, links)
            draws = self._exact and drawn_since(rng)
            if not draws and is_same((args, kwargs), before):
                passed = {id(t) for t in given} - {id(t) for t in changed}
                self._end(call, output, links, passed)
            return output

        return wrapper

    def _links(self, given: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the stand-ins of those tensors that earlier calls returned."""
        found = {}
        for tensor in given:
            if id(tensor) in self._made:
                ref, call, index = self._made[id(tensor)]
                if ref() is tensor and call.versions[index] == tensor._version:
                    found[id(tensor)] = call.stand_ins[index]
        return found

    def _note_changes(self, changed: Sequence[Tensor], links: Collection[int]) -> None:
        for tensor in changed:
            if id(tensor) in links:
                _, call, index = self._made[id(tensor)]
                call.versions[index], call.gone = tensor._version, True

    def _end(
        self,
        call: FrozenCall,
        output: Any,
        links: Mapping[int, Tensor],
        passed: Collection[int],
    ) -> None:
        """Note what a call returned, unless it is no plain tensors."""
        returned = plain_tensors(output)
        # something that trains acts on it from outside, such as an adapter by a hook
        if returned is None or any(tensor.requires_grad for tensor in returned):
            return
        answers = dict(links)
        # what it was given and passes on has its stand-in
        own = {id(t): t for t in returned if id(t) not in passed}
        for key, tensor in own.items():
            real = self._paths[call.path]
            empty = partial(torch.empty_like, tensor, device='meta')
            answers[key] = tensor.detach() if real else empty()
            self._made[key] = weakref.ref(tensor), call, len(call.stand_ins)
            call.stand_ins.append(answers[key])
            call.versions.append(tensor._version)
        call.answer = replaced(output, answers)
        self.calls.append(call)


@contextmanager
def answered(
    teacher: nn.Module, calls: Sequence[FrozenCall]
) -> Iterator[list[FrozenCall]]:
    """Answer the teacher's calls of frozen modules where the student made the same.

    Args:
        teacher (nn.Module): The teacher.
        calls (Sequence[FrozenCall]): Those of the student.

    Yields:
        list[FrozenCall]: Those that were answered; it grows.
    """
    found: list[FrozenCall] = []

    def answering(known: Sequence[FrozenCall], forward: Method) -> Method:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for call in known:
                if is_same((args, kwargs), call.given):
                    found.append(call)
                    return snapshot(call.answer)
            return forward(*args, **kwargs)

        return wrapper

    known: dict[str, list[FrozenCall]] = {}
    for call in calls:
        known.setdefault(f'{call.path}.forward', []).append(call)
    with wrapped(teacher, {path: partial(answering, known[path]) for path in known}):
        yield found


class LeakError(RuntimeError):
    """What a frozen module returned is used after it was changed, or is changed.

    Args:
        path (str): The module's path.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Uses(Watch):  # type: ignore[no-untyped-call]
    """Notes which stand-ins are used by something else than frozen modules.

    Args:
        calls (Sequence[FrozenCall]): Have the stand-ins.

    Attributes:
        used (set[int]): The ``id`` of those that were.
    """

    def __init__(self, calls: Sequence[FrozenCall]) -> None:
        super().__init__()
        self._owners = {id(t): call for call in calls for t in call.stand_ins}
        self.used: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make an operation, unless it would read or write what it must not."""
        kwargs = kwargs or {}
        self.note((args, kwargs))
        changed = self._owners.get(id(args[0])) if args else None
        if changed is not None and func.overloadpacket.__name__.endswith('_'):
            raise LeakError(changed.path)
        return func(*args, **kwargs)

    def note(self, data: Any) -> None:
        """Note that the tensors in nested containers are used.

        Raises:
            LeakError: If one has other numbers by now.
        """
        for tensor in tensors_in(data):
            call = self._owners.get(id(tensor))
            if call is not None and call.gone:
                raise LeakError(call.path)
            self.used.add(id(tensor))


def plain_tensors(data: Any) -> list[Tensor] | None:
    """List the tensors in nested containers, or return None if there is more in them.

    Numbers, text and None do not count.
    """
    values = [each for each in flat(data) if not isinstance(each, PLAIN)]
    plain = all(isinstance(each, Tensor) and is_plain(each) for each in values)
    return values if plain else None


def is_same(one: Any, other: Any) -> bool:
    """Say whether nested containers hold the very same tensors, and equal numbers."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            is_same(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return isinstance(one, PLAIN) and bool(one == other)
