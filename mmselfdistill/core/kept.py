"""What the student chooses for both sides inside of a call that is repeated."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Collection, Iterator, Mapping, Sequence

from torch import nn

from mmselfdistill.families.plan import Call, Seam, parameters_of
from mmselfdistill.wrapping import Method, wrapped


@contextmanager
def keeping(
    teacher: nn.Module, groups: Sequence[Sequence[Call]], seams: Mapping[str, Seam]
) -> Iterator[None]:
    """Give calls within others the student's arguments where the plan keeps them.

    Args:
        teacher (nn.Module): Makes the calls.
        groups (Sequence): The student's: each outermost one with those within it.
        seams (Mapping[str, Seam]): By path.
    """
    inner: dict[str, list[Call]] = {}
    for group in groups:
        for call in group[1:]:
            if seams[call.path].keep:
                inner.setdefault(call.path, []).append(call)

    def kept(path: str, method: Method) -> Method:
        remaining, order = iter(inner[path]), parameters_of(method)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # where the teacher makes more calls, the check at the end says so
            ours = next(remaining, None)
            if ours is not None:
                args = _kept(ours, seams[path].keep, order, args, kwargs)
            return method(*args, **kwargs)

        return wrapper

    wrappers = {path: partial(kept, path) for path in inner}
    with wrapped(teacher, wrappers):
        yield


def _kept(
    ours: Call,
    names: Collection[str],
    order: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """Put the student's values into a call, each where either side has its own."""
    positional = list(args)
    for name in names:
        at = order.index(name) if name in order else len(ours.args)
        if name in ours.kwargs:
            value = ours.kwargs[name]
        elif at < len(ours.args):
            value = ours.args[at]
        else:
            continue  # the default, on both sides
        if name not in kwargs and at < len(positional):
            positional[at] = value
        else:
            kwargs[name] = value
    return tuple(positional)
