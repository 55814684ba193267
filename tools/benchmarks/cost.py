"""Measure what self-distillation adds to a training iteration.

    python -m tools.benchmarks.cost [CONFIG ...] [--models REGEX] [--sizes 320 640]
    python -m tools.benchmarks.cost --ema | --syncs | --scaling

Several kinds of iteration of one model are timed in turns, in random order, in one
process and on the same batch. Models have random weights and batches are noise, so
that nothing has to be downloaded. Results are kept in a JSON: what was measured with
the same settings, and the same text of a config of your own, is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import re
import warnings
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmselfdistill.zoo import read_config
from tools.benchmarks.ema import measure_ema
from tools.benchmarks.iterations import (
    ASKED_FOR,
    KINDS,
    WARM_UP,
    Iterations,
    in_turns,
)
from tools.benchmarks.results import Results, short, summary, table_of_kinds
from tools.benchmarks.scaling import measure_scaling
from tools.benchmarks.subjects import MODELS, device_name, make_subject
from tools.benchmarks.syncs import measure_syncs

DEFAULT = [kind for kind in KINDS if kind not in ASKED_FOR]


def jobs_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the settings of all that the command line asks to be measured."""
    return [
        dict(
            mode='kinds',
            model=model,
            size=size,
            batch=args.batch,
            amp=args.amp,
            rounds=args.rounds,
            kinds=args.kinds,
            device=device_name(),
            **text,
        )
        for model, text in ((model, text_of(model)) for model in args.configs)
        for size in args.sizes
    ]


def text_of(model: str) -> dict[str, str]:
    """Return the hash of a config given by its path, which may have been edited.

    The name of a config in a zoo says which it is.
    """
    if '::' in model:
        return {}
    try:
        text = read_config(model, None).pretty_text
    except Exception:
        # building the model will say what is wrong
        return {}
    return dict(text=hashlib.sha256(text.encode()).hexdigest()[:16])


def measure_kinds(args: argparse.Namespace, console: Console) -> None:
    """Measure every kind of iteration of every model at every size."""
    results = Results(args.out)
    jobs = jobs_of(args)
    waiting = [job for job in jobs if results.find(job) is None]
    steps = len(args.kinds) * (args.rounds + WARM_UP)
    with progress_on(console) as progress:
        task = progress.add_task('', total=len(waiting) * steps)
        for index, job in enumerate(waiting):
            progress.update(task, description=f'{short(job["model"])} {job["size"]}')
            try:
                measured = _measure(job, lambda: progress.advance(task))
            except Exception as error:
                # the next model may do
                measured = dict(error=f'{type(error).__name__}: {error}'[:500])
            progress.update(task, completed=(index + 1) * steps)
            record = results.add(job, **measured)
            if 'error' in record:
                name = f'{short(job["model"])}, {job["size"]}'
                console.print(f'{name}: {record["error"]}', markup=False)
            else:
                console.print(table_of_kinds(record))
    found = [r for r in results.records if r['settings'] in jobs]
    console.print(summary(found))
    console.print(f'Written to {args.out}')


def _measure(job: dict[str, Any], advance: Callable[[], Any]) -> dict[str, Any]:
    gc.collect()  # the model before must not count as this one's memory
    subject = make_subject(job['model'], job['size'], job['batch'], job['amp'])
    iterations = Iterations(subject, job['kinds'])
    seconds, peaks = in_turns(iterations.kinds, iterations.run, job['rounds'], advance)
    return dict(seconds=seconds, peaks=peaks)


def progress_on(console: Console) -> Progress:
    """Return a bar that says how much time is left."""
    columns = (BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn())
    label = TextColumn('{task.description}')
    return Progress(label, *columns, *times, console=console)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument(
        'configs',
        nargs='*',
        help='paths of configs, or names in a zoo. Defaults to eight models of both',
    )
    parser.add_argument(
        '--models', default='', metavar='REGEX', help='only configs of such a name'
    )
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[512, 800], help='sides of the images'
    )
    parser.add_argument('--batch', type=int, default=2, help='images in a batch')
    parser.add_argument(
        '--amp', choices=('none', 'float16', 'bfloat16'), default='none'
    )
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=DEFAULT)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/cost.json'))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        '--ema', action='store_true', help="our average's update against MMEngine's"
    )
    mode.add_argument(
        '--syncs', action='store_true', help='what waits for the device (CUDA)'
    )
    mode.add_argument(
        '--scaling', action='store_true', help='each term against size and number'
    )
    parser.add_argument(
        '--figure',
        type=Path,
        default=Path('work_dirs/cost_scaling.png'),
        help='the picture that --scaling draws',
    )
    args = parser.parse_args(arguments)
    if args.rounds < 2:
        parser.error(f'--rounds: expected at least 2, but got {args.rounds}')
    if args.amp != 'none' and not torch.cuda.is_available():
        parser.error('--amp: MMEngine has mixed precision on a CUDA device only')
    if args.syncs and not torch.cuda.is_available():
        parser.error('--syncs: there is no CUDA device to wait for')
    if 'stock' not in args.kinds:
        args.kinds.insert(0, 'stock')
    known = args.configs or MODELS
    args.configs = [name for name in known if re.search(args.models, name)]
    if not args.configs:
        parser.error(f'--models: {args.models!r} matches none of {", ".join(known)}')
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says."""
    args = parse_args(arguments)
    # on a pipe, rich would fold tables into 80 columns
    console = Console(width=None if Console().is_terminal else 160)
    if args.ema:
        measure_ema(args, console)
    elif args.syncs:
        measure_syncs(args, console)
    elif args.scaling:
        measure_scaling(args, console)
    else:
        measure_kinds(args, console)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    MMLogger.get_instance('cost', log_level='ERROR')
    main()
