"""Record the calls by which a model computes its loss."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Collection, Iterator, Sequence

from torch import nn

from mmselfdistill.containers import snapshot
from mmselfdistill.core.attributes import Attributes
from mmselfdistill.core.changes import Changes
from mmselfdistill.core.given import groups_of, needed_by, of_the_loss, returned_by
from mmselfdistill.core.streams import precision, rng_states
from mmselfdistill.families.plan import Call, Seam
from mmselfdistill.wrapping import Method, wrapped


@dataclass
class Recording:
    """The calls of a forward pass, while it is made.

    Args:
        calls (list[Call]): Those that have begun, in order.
        depth (int): The number of seams that are being called at this moment.
        changes (Changes): What was changed in place.
        attributes (Attributes, optional): Reads what the modules hold besides weights.
            Defaults to None: nothing is read.
        to_repeat (bool): Whether a teacher is to repeat the calls: what they depend on
            is noted, and what is changed in place. Defaults to True.
    """

    calls: list[Call] = field(default_factory=list)
    depth: int = 0
    changes: Changes = field(default_factory=Changes)
    attributes: Attributes | None = None
    to_repeat: bool = True

    def begin(self, call: Call) -> None:
        """Note what an outermost call depends on."""
        call.begin()
        call.rng, call.precision = rng_states(), precision()
        if self.attributes is not None:
            call.attributes = self.attributes.now()


@contextmanager
def record(
    model: nn.Module, seams: Sequence[Seam], recording: Recording | None = None
) -> Iterator[list[Call]]:
    """Record every call of the seams, in the order in which they begin.

    The methods are replaced on these objects alone, and put back at the end, whatever
    ends it: between two recordings the model can be copied, pickled and compiled.

    Yields:
        list[Call]: The calls; it grows while the model runs. At the end those are left
        that are a part of the loss, unless it is a recording that was given.
    """
    whole = recording is not None
    recording = recording or Recording()
    wrappers = {seam.path: partial(_recording, seam, recording) for seam in seams}
    with wrapped(model, wrappers):
        yield recording.calls
    recording.changes.note(None)
    if not whole:
        recording.calls[:] = of_the_loss(recording.calls)


def _recording(seam: Seam, recording: Recording, method: Method) -> Method:
    # PyTorch 2.1 skips a wrapper with the attributes of a method it does not compile
    @wraps(method, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        outermost = recording.to_repeat and recording.depth == 0
        call = Call(seam.path, recording.depth, snapshot(args), snapshot(kwargs))
        if outermost:
            recording.begin(call)
            recording.changes.begin(call)
        recording.calls.append(call)
        recording.depth += 1
        try:
            output = method(*args, **kwargs)
        finally:
            recording.depth -= 1
        call.end(output)
        if outermost:
            recording.changes.end(call)
        elif recording.to_repeat:
            recording.changes.end_within(call)
        return output

    return wrapper


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
        if read or not wanted.isdisjoint(returned_by(group)):
            needed.append(group)
            wanted.update(needed_by(group))
    return needed[::-1]
