"""The student's ``forward`` while it is distilled."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator
from weakref import WeakKeyDictionary, ref

from torch import nn

from mmselfdistill.wrapping import uncompiled


class DistilledForward:
    """The student's ``forward`` with the terms; a copy of the student has its own."""

    def __init__(self, distiller: Any, stock: Callable[..., Any]) -> None:
        self.distiller = distiller
        self.stock = stock
        # a hook of the user's may call it, or put it back, once it is taken off
        self.active = True
        self._forward = uncompiled(distiller.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the student's own ``forward`` does, with the terms added."""
        if not self.active:
            return self.stock(*args, **kwargs)
        return self._forward(self.stock, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copying and pickling leave the distiller behind
        return _itself, (self.stock,)


# the one that is on each student, whatever was put around it
_ON: WeakKeyDictionary[nn.Module, ref[Attachment]] = WeakKeyDictionary()


def release(student: nn.Module) -> None:
    """Take off what a run that failed has left: MMEngine skips ``after_train`` then."""
    left = _ON[student]() if student in _ON else None
    if left is not None:
        left.take_off()


class Attachment:
    """Puts a distiller's ``forward`` on its student, and takes it off.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
    """

    def __init__(self, student: nn.Module) -> None:
        self._own = vars(student)
        self._student = student
        self._put: DistilledForward | None = None
        self._replaced: Callable[..., Any] | None = None

    def put_on(self, distiller: Any) -> bool:
        """Extend the student's ``forward``; say whether it was not yet."""
        if self._put is not None:
            return False
        self._replaced = self._own.get('forward')
        self._put = DistilledForward(distiller, self._student.forward)
        self._set(self._put)
        _ON[self._student] = ref(self)
        return True

    def take_off(self) -> None:
        """Leave the student as it was, or as a hook of the user's has made it since."""
        if self._put is not None:
            if self.is_outermost:
                self._set(self._replaced)
            self._put.active = False
            self._put = None
            _ON.pop(self._student, None)

    @property
    def is_outermost(self) -> bool:
        """Whether the student's ``forward`` is the extended one itself."""
        return self._put is not None and self._own.get('forward') is self._put

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Let the student be as it was for a while, whatever was put around it."""
        outer = self._own.get('forward')
        self._set(self._replaced)
        try:
            yield
        finally:
            self._set(outer)

    def _set(self, forward: Callable[..., Any] | None) -> None:
        self._own.pop('forward', None)
        if forward is not None:
            self._own['forward'] = forward


def _itself(stock: Callable[..., Any]) -> Callable[..., Any]:
    return stock
