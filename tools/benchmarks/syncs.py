"""What in an iteration waits for the device, and whose code it is.

A wait is ours where the nearest frame that is not PyTorch's is in our package. Where
the teacher repeats the model's own code, the frameworks' waits are repeated too: they
are counted against a stock iteration.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Iterator

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmselfdistill
from tools.benchmarks.iterations import WARM_UP, Iterations
from tools.benchmarks.results import Results, short
from tools.benchmarks.subjects import device_name, make_subject

ITERATIONS = 3
PACKAGE = str(Path(mmselfdistill.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = sysconfig.get_paths()['stdlib']
_INSTALLED = ('site-packages', 'dist-packages')

_ATEN = torch.ops.aten
# the size of what these return, or the value itself, has to be known on the host
_WAITING = (
    _ATEN._local_scalar_dense,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN._unique2,
    _ATEN.unique_dim,
    _ATEN.bincount,
    _ATEN.equal,
)
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_)


def place() -> str:
    """Return file and line of the nearest frame that is not PyTorch's or Python's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        standard = file.startswith(_STANDARD) and not any(x in file for x in _INSTALLED)
        through = standard or file.startswith((_TORCH, '<'))
        if not through and file != place.__code__.co_filename:
            return f'{file}:{frame.f_lineno}'
        frame = frame.f_back
    return 'nowhere'


class WouldWait(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that would wait for a device, on the CPU too.

    Attributes:
        counts (Counter): By file and line of the code, and the operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count it if it would wait."""
        operation = func.overloadpacket
        masked = operation in _INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
        # a count of repeats that is a tensor, and no size of the result given
        repeats = operation is _ATEN.repeat_interleave and not kwargs
        if masked or repeats or operation in _WAITING:
            self.counts[place(), str(operation)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count the waits for a CUDA device in a block, by file and line of the code."""
    counts: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if 'synchronizing' in str(message):
            counts[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode('default')


def waits_of(iterations: Iterations, kind: str) -> Counter[str]:
    """Count the waits of a few later iterations of one kind."""
    subject = iterations.subject
    for _ in range(WARM_UP):
        iterations.run(kind)
    batches = [subject.copied_batch() for _ in range(ITERATIONS)]
    torch.cuda.synchronize()
    with iterations.attached(kind), waits() as counts:
        for batch in batches:
            subject.wrapper.update_params(subject.loss(batch))
    return counts


def compared(stock: Counter[str], ours: Counter[str]) -> dict[str, Any]:
    """Return what waits in a self-distilled iteration and not in a stock one.

    Returns:
        dict: Waits an iteration: 'stock' and 'ours' in all; 'of_ours' by the place in
        our package; 'repeated' by the place in the frameworks, more than in stock.
    """
    more = ours - stock
    mine = {key: n for key, n in ours.items() if key.startswith(PACKAGE)}
    others = {key: n for key, n in more.items() if key not in mine}
    return dict(
        stock=sum(stock.values()) / ITERATIONS,
        ours=sum(ours.values()) / ITERATIONS,
        of_ours={key: n / ITERATIONS for key, n in mine.items()},
        repeated={key: n / ITERATIONS for key, n in others.items()},
    )


def measure_syncs(args: argparse.Namespace, console: Console) -> None:
    """Count the waits of stock and self-distilled iterations of every model."""
    results = Results(args.out)
    for name in args.configs:
        size = args.sizes[0]
        settings = dict(mode='syncs', model=name, size=size, batch=args.batch)
        settings.update(amp=args.amp, device=device_name())
        try:
            subject = make_subject(name, size, args.batch, args.amp)
            iterations = Iterations(subject, ('stock', 'ours'))
            found = compared(*(waits_of(iterations, k) for k in ('stock', 'ours')))
        except Exception as error:
            # the next model may do
            found = dict(error=f'{type(error).__name__}: {error}'[:500])
        results.add(settings, **found)
        _show(console, short(name), found)
    console.print(f'Written to {args.out}')


def _show(console: Console, name: str, found: dict[str, Any]) -> None:
    if 'error' in found:
        console.print(f'{name}: {found["error"]}', markup=False)
        return
    console.print(
        f'{name}: waits an iteration: {found["stock"]:.1f} in stock, '
        f'{found["ours"]:.1f} with self-distillation, '
        f'{sum(found["of_ours"].values()):.1f} of them in our code'
    )
    for title in ('of_ours', 'repeated'):
        for where, count in found[title].items():
            console.print(f'  {title}: {count:.1f} at {where}', markup=False)
