"""See every operation of a model, also of its compiled parts."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode under which compiled parts run as they were written.

    PyTorch would take each function that it meets under such a mode for one that cannot
    be compiled, for the rest of the process.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._eager = ExitStack()

    def __enter__(self) -> Any:
        """Begin to see operations."""
        stance = getattr(torch.compiler, 'set_stance', None)
        if stance is not None:
            self._eager.enter_context(stance('force_eager'))
        elif 'torch._dynamo' in sys.modules:
            # PyTorch before 2.6: what it has noted is forgotten at the end
            self._eager.callback(sys.modules['torch._dynamo'].reset)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """See no more."""
        with self._eager:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
