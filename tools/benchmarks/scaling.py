"""The cost of each term against the size of images and the number of what there is.

Everything is a ratio to the teacher's forward, of the same model on the same batch: the
arithmetic of both grows with the image, so that small images on a CPU tell what large
ones cost.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmselfdistill.containers import replaced
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.comparison import Batch
from mmselfdistill.core.pairs import pair
from mmselfdistill.core.recorder import record
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.terms import Term
from mmselfdistill.families.plan import Side
from mmselfdistill.losses.common import reduced
from mmselfdistill.zoo import read_config
from tools.benchmarks.curves import draw
from tools.benchmarks.iterations import measured
from tools.benchmarks.memory import peak_bytes
from tools.benchmarks.results import Results, short
from tools.benchmarks.subjects import MODELS, Subject, device_name, subject_of

DETECTOR, DETR, SEGMENTOR = MODELS[0], MODELS[4], MODELS[6]
# one axis varies while the others stay at their first value
AXES: dict[str, dict[str, tuple[int, ...]]] = {
    DETECTOR: dict(
        size=(96, 64, 128, 192),
        batch=(1, 2, 4),
        classes=(80, 20, 320, 1203),
        levels=(5, 3, 4, 6),
    ),
    # its queries are chosen among the positions of all levels
    DETR: dict(
        size=(256, 192, 384),
        batch=(1, 2, 4),
        classes=(80, 20, 320, 1203),
        queries=(300, 100, 900),
    ),
    # the norm of its pooled branch needs two images
    SEGMENTOR: dict(
        size=(96, 64, 128, 192), batch=(2, 4, 8), classes=(150, 19, 40, 80)
    ),
}
# terms besides the defaults, by name
MORE: dict[str, dict[str, Any]] = dict(
    mse=dict(type='FeatureMSELoss', site='features'),
    contrast=dict(type='InfoNCELoss', site='features'),
    early=dict(type='PKDLoss', site='backbone.layer2'),
)


class Point(NamedTuple):
    """A model at one size, with so many images, classes, queries and levels."""

    model: str
    size: int
    batch: int
    classes: int
    queries: int = 0
    levels: int = 0

    def subject(self) -> Subject:
        """Return the model and its batch."""
        cfg = read_config(self.model, None)
        _set(cfg.model, 'num_classes', self.classes)
        _set(cfg.model, 'num_queries', self.queries)
        if self.levels:
            # of RetinaNet's pyramid, from stride 8 on
            cfg.model.neck.num_outs = self.levels
            strides = [8 * 2**level for level in range(self.levels)]
            cfg.model.bbox_head.anchor_generator.strides = strides
        return subject_of(cfg, self.size, self.batch)


def _set(cfg: Any, name: str, count: int) -> None:
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, (dict, list)):
            _set(value, name, count)
    if isinstance(cfg, (dict, Config)) and name in cfg:
        cfg[name] = count


def points(model: str) -> dict[str, list[Point]]:
    """Return the points of every axis of a model, in order."""
    axes = AXES[model]
    base = Point(model, **{axis: values[0] for axis, values in axes.items()})
    return {
        axis: [Point(**{**base._asdict(), axis: value}) for value in sorted(values)]
        for axis, values in axes.items()
    }


class Shares:
    """The parts of a self-distilled iteration, one by one.

    Args:
        subject (Subject): Its model makes one iteration first.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.distiller = build_distiller(subject.model, MORE, schedule='constant')
        self.teacher = make_teacher(subject.model)
        self.distiller.attach()
        subject.loss(subject.copied_batch())
        self.distiller.detach()
        comparison, batch = self.distiller.labeled, subject.copied_batch()
        self.batch = Batch(batch['data_samples'])
        self.terms = [t for t in self.distiller.terms if comparison.shapes[t.name]]
        with record(subject.model, comparison.plan.seams) as self.calls:
            subject.loss(batch)
        self.sides = self.repeat()

    def repeat(self) -> tuple[Side, Side]:
        """Let the teacher repeat what the terms need."""
        return self.distiller.labeled.sides(
            self.teacher, self.terms, self.calls, self.batch
        )

    def term(self, term: Term) -> Tensor:
        """Compute one term, and its gradient by what the student's calls returned.

        Returns:
            Tensor: The term, summed over its pairs.
        """
        student, teacher = self.sides
        # without a history: the model's own layers are not gone through
        own = {
            id(value): value.detach().requires_grad_()
            for call in student.calls
            for _, value in call.returned
            if isinstance(value, Tensor) and value.requires_grad
        }
        calls = [
            replace(
                call,
                args=replaced(call.args, own),
                kwargs=replaced(call.kwargs, own),
                output=replaced(call.output, own),
            )
            for call in student.calls
        ]
        # new sides, since what one term has read another need not read
        ours = Side(student.model, calls, student.samples)
        theirs = Side(teacher.model, teacher.calls, teacher.samples)
        pairs = pair(self.batch.site(term), ours, theirs)
        values = [reduced(term.divergence(p), p.weight, p.norm) for p in pairs]
        total = torch.stack(values).sum()
        torch.autograd.grad(total, list(own.values()), allow_unused=True)
        return total.detach()

    def seconds(self, rounds: int) -> dict[str, float]:
        """Return the median seconds of the teacher's pass, and of each term."""
        runs: dict[str, Callable[[], Any]] = {'teacher': self.repeat}
        runs.update({t.name: partial(self.term, t) for t in self.terms})
        found: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(rounds + 1):
            for name, run in runs.items():
                with measured() as result:
                    run()
                if index > 0:
                    found[name].append(result[0])
        return {name: statistics.median(values) for name, values in found.items()}

    def peaks(self) -> dict[str, int]:
        """Return the most memory that the teacher's pass and each term add."""
        found = {}
        with peak_bytes() as peak:
            self.repeat()
        found['teacher'] = peak[0]
        for term in self.terms:
            with peak_bytes() as peak:
                self.term(term)
            found[term.name] = peak[0]
        return found


def measure_scaling(args: argparse.Namespace, console: Console) -> None:
    """Measure every point, draw the curves, and name what grows fastest."""
    axes = {model: points(model) for model in AXES if model in args.configs}
    if not axes:
        raise SystemExit(f'--scaling: expected some of {", ".join(AXES)}')
    results = Results(args.out)
    found: dict[Point, dict[str, Any]] = {}
    waiting = [p for each in axes.values() for along in each.values() for p in along]
    for point in dict.fromkeys(waiting):
        settings = dict(mode='scaling', rounds=args.rounds, device=device_name())
        settings.update(point._asdict())
        known = results.find(settings)
        if known is None:
            shares = Shares(point.subject())
            measured = dict(seconds=shares.seconds(args.rounds), peaks=shares.peaks())
            known = results.add(settings, **measured)
        found[point] = known
        console.print(_line(point, known))
    draw(axes, {point: ratios(record) for point, record in found.items()}, args.figure)
    console.print(table_of_growth(axes, found))
    console.print(f'Written to {args.out} and {args.figure}')


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each term, of the teacher's forward."""
    seconds = dict(record['seconds'])
    teacher = seconds.pop('teacher')
    return {name: value / teacher for name, value in seconds.items()}


def _line(point: Point, record: dict[str, Any]) -> str:
    shares = [f'{name} {value:.3f}' for name, value in ratios(record).items()]
    teacher = record['seconds']['teacher']
    queries = f', {point.queries} queries' if point.queries else ''
    levels = f', {point.levels} levels' if point.levels else ''
    return (
        f'{short(point.model)}, {point.batch} x {point.size}, {point.classes} '
        f'classes{queries}{levels}: the teacher {1000 * teacher:.0f} ms; of that, '
        f'{", ".join(shares)}'
    )


def growth(values: list[int], seconds: list[float]) -> float:
    """Return the slope of seconds over values, both in logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def table_of_growth(
    axes: Mapping[str, Mapping[str, Sequence[Point]]],
    found: Mapping[Point, dict[str, Any]],
) -> Table:
    """Return how each part grows on each axis: seconds as value to this power."""
    table = Table(title='Seconds grow as the axis to the power of')
    for name in ('model', 'axis', 'the fastest', 'all'):
        table.add_column(name)
    curves = [(m, a, along) for m, each in axes.items() for a, along in each.items()]
    for model, axis, along in curves:
        values = [getattr(point, axis) for point in along]
        names = set.intersection(*(set(found[p]['seconds']) for p in along))
        powers = {
            name: growth(values, [found[p]['seconds'][name] for p in along])
            for name in sorted(names)
        }
        fastest = max((n for n in powers if n != 'teacher'), key=lambda n: powers[n])
        every = ', '.join(f'{name} {power:.2f}' for name, power in powers.items())
        table.add_row(short(model), axis, fastest, every)
    return table
