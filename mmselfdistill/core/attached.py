"""The student's ``forward`` while it is distilled."""

from __future__ import annotations

from typing import Any, Callable

from mmselfdistill.wrapping import uncompiled


class DistilledForward:
    """The student's ``forward`` with the terms; a copy of the student has its own."""

    def __init__(self, distiller: Any, stock: Callable[..., Any]) -> None:
        self.distiller = distiller
        self.stock = stock
        self._forward = uncompiled(distiller.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the student's own ``forward`` does, with the terms added."""
        return self._forward(self.stock, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copying and pickling leave the distiller behind
        return _itself, (self.stock,)


def _itself(stock: Callable[..., Any]) -> Callable[..., Any]:
    return stock
