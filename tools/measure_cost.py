"""Measure what self-distillation adds to a training iteration.

Three kinds of iteration are timed in turns, on the same batches and in one process:

    stock    forward, loss, backward, optimizer step
    bare     the same, and one forward of a frozen copy of the model: the least that
             a teacher can cost
    ours     the same as stock, with the default terms of self-distillation

    python tools/measure_cost.py configs/digits/retinanet_r18_fpn_50e_digits.py
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import statistics
import time
from typing import Any, Callable

import torch
from launching import (  # type: ignore[import-not-found]
    add_common_arguments,
    build_runner,
    load_config,
    parse_args,
)
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmselfdistill.core.distiller import build_distiller
from mmselfdistill.core.teacher import make_teacher

KINDS = ('stock', 'bare', 'ours')


class Iterations:
    """The three kinds of iteration of one model.

    Args:
        runner (Runner): Of the config, without self-distillation.
    """

    def __init__(self, runner: Runner) -> None:
        self.model: Any = runner.model
        self.wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        self.teacher: Any = make_teacher(self.model)
        self.distiller = build_distiller(self.model)
        self.distiller.teacher = self.teacher
        # lets BatchNorm and dropout be those of training
        self.model.train()

    def run(self, kind: str, batch: dict[str, Any]) -> float:
        """Run one iteration, and return its seconds."""
        batch = copy.deepcopy(batch)  # models may write into the annotations
        spare = copy.deepcopy(batch)
        if kind == 'ours':
            self.distiller.attach()
        synchronize()
        started = time.perf_counter()
        if kind == 'bare':
            with torch.no_grad(), self.wrapper.optim_context(self.teacher):
                self.teacher(**spare, mode='tensor')
        with self.wrapper.optim_context(self.model):
            losses = self.model(**batch, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.wrapper.update_params(loss)
        synchronize()
        seconds = time.perf_counter() - started
        self.distiller.detach()
        return seconds


def synchronize() -> None:
    """Wait for the device, where there is one to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    run: Callable[[str, Any], float], batches: Any, rounds: int, console: Console
) -> dict[str, list[float]]:
    """Time every kind once a round, in random order, after one round unmeasured."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in track(range(rounds + 1), 'Measuring', console=console):
        batch = next(batches)
        for kind in order.sample(KINDS, len(KINDS)):
            value = run(kind, batch)
            if index > 0:
                seconds[kind].append(value)
    return seconds


def ratio(seconds: dict[str, list[float]], kind: str, base: str) -> str:
    """Return the median and the quartiles of the rounds' ratios."""
    ratios = [a / b for a, b in zip(seconds[kind], seconds[base])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f'{middle:.3f} ({low:.3f}-{high:.3f})'


def show(console: Console, seconds: dict[str, list[float]], name: str) -> None:
    """Print medians and ratios."""
    device = 'GPU' if torch.cuda.is_available() else 'CPU'
    rounds = len(seconds['stock'])
    table = Table(title=f'{name}: {rounds} rounds on {device}, median (quartiles)')
    for column in ('iteration', 's', 'to stock', 'to stock + bare teacher'):
        table.add_column(column, justify='left' if column == 'iteration' else 'right')
    names = dict(bare='stock + bare teacher', ours='self-distillation')
    for kind in KINDS:
        table.add_row(
            names.get(kind, kind),
            f'{statistics.median(seconds[kind]):.4f}',
            ratio(seconds, kind, 'stock'),
            ratio(seconds, kind, 'bare'),
        )
    console.print(table)


def main() -> None:
    """Measure the config of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    add_common_arguments(parser)
    parser.add_argument(
        '--rounds', type=int, default=30, help='iterations of each kind. Defaults to 30'
    )
    args = parse_args(parser)
    if args.rounds < 2:
        parser.error(f'--rounds: expected at least 2, but got {args.rounds}')
    cfg = load_config(args)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.get('default_hooks', {}).pop('self_distill', None)
    runner = build_runner(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    batches = (
        runner.model.data_preprocessor(batch, True)
        for batch in itertools.chain.from_iterable(itertools.repeat(loader))
    )
    console = Console()
    seconds = measure(Iterations(runner).run, batches, args.rounds, console)
    show(console, seconds, args.config)


if __name__ == '__main__':
    main()
