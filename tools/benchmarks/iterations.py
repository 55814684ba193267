"""Kinds of iteration of one model, and how they are timed in turns."""

from __future__ import annotations

import gc
import random
import time
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import torch
from torch import nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.recorder import record, slice_back
from mmselfdistill.core.teacher import make_teacher, tensors_of
from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import find_plan
from mmselfdistill.families.plan import Call
from mmselfdistill.hooks.unlabeled import DEFAULT_VIEW
from mmselfdistill.testing.unlabeled import Same
from mmselfdistill.views import build_view
from tools.benchmarks.subjects import Subject

# the first iteration of a distiller checks; on a device, the first ones choose kernels
WARM_UP = 2

# what is built for a model, besides its teacher; None: it has not what is asked for
Settings = Callable[[nn.Module], Optional[Dict[str, Any]]]


def only(name: str) -> Settings:
    """Return the settings that keep one default term."""

    def settings(model: nn.Module) -> dict[str, Any] | None:
        names = list(default_terms(find_plan(model)))
        terms = {each: None for each in names if each != name}
        return dict(terms=terms) if name in names else None

    return settings


# settings of self-distillation
OURS: dict[str, Settings] = dict(
    ours=lambda model: {},
    features=only('features'),
    logits=only('logits'),
    silent=lambda model: dict(loss_weight=0.0),
    unlabeled=lambda model: {},
)
KINDS = ('stock', 'limit', 'naive', *OURS)
# not of every model: some need more than an image
ASKED_FOR = ('unlabeled',)
MEANINGS = dict(
    stock='forward, loss, backward, step',
    limit="stock, and a copy's bare calls of what the loss uses",
    naive="stock, and a copy's whole loss (mode='loss')",
    ours='self-distillation, default terms',
    features='the term features alone',
    logits='the term logits alone',
    silent='self-distillation at weight 0',
    unlabeled='ours, and as many images without labels',
)


class Iterations:
    """The kinds of iteration of one model, with one teacher.

    Args:
        subject (Subject): Its model is not changed, but for the steps.
        kinds (Sequence[str]): Of :data:`KINDS`. Those that the model has no term for
            are left out.
    """

    def __init__(self, subject: Subject, kinds: Sequence[str]) -> None:
        self.subject = subject
        self.teacher: Any = make_teacher(subject.model)
        self.distillers = {k: self._distiller(k) for k in kinds if k in OURS}
        self.kinds = [k for k in kinds if k not in OURS or self.distillers[k]]
        self.needed = Needed(subject) if 'limit' in kinds else None

    def _distiller(self, kind: str) -> Distiller | None:
        settings = OURS[kind](self.subject.model)
        if settings is None:
            return None
        if kind == 'unlabeled':
            view = build_view(DEFAULT_VIEW, 'view', labels=False)
            batches = Same(self.subject.raw)
            settings = dict(unlabeled=dict(batches=batches, view=view))
        distiller = build_distiller(self.subject.model, schedule='constant', **settings)
        distiller.teacher = self.teacher
        return distiller

    def run(self, kind: str) -> tuple[float, int | None]:
        """Run one iteration.

        Returns:
            tuple: Its seconds, and the most memory in bytes that was allocated while
            it ran; None on the CPU. The teacher is in memory throughout; a stock
            iteration is not charged for it.
        """
        batch, spare = self.subject.copied_batch(), self.subject.copied_batch()
        needed = self.needed.calls() if kind == 'limit' and self.needed else []
        with self.attached(kind), measured() as result:
            with torch.no_grad(), self.subject.wrapper.optim_context(self.teacher):
                if kind == 'naive':
                    self.teacher(**spare, mode='loss')
                while needed:
                    # let go of after it: what it holds is not charged for
                    _repeat(self.teacher, needed.pop(0))
            loss = self.subject.loss(batch)
            self.subject.wrapper.update_params(loss)
        seconds, peak = result
        if peak is not None and kind == 'stock':
            peak -= bytes_of(self.teacher)
        return seconds, peak

    @contextmanager
    def attached(self, kind: str) -> Iterator[None]:
        """Let the kind's distiller act on the model for a while, if it has one."""
        distiller = self.distillers.get(kind)
        if distiller is None:
            yield
            return
        distiller.attach()
        try:
            yield
        finally:
            distiller.detach()


def _repeat(teacher: Any, call: Call) -> None:
    attrgetter(call.path)(teacher)(*call.args, **call.kwargs)


class Needed:
    """The calls that any teacher has to make for the default terms of a model.

    Those of features and heads, on the student's own proposals and queries: nothing
    that is chosen, sampled or assigned. A forward in the mode 'tensor' does less or
    more than that: of a two-stage detector, it chooses other proposals.

    Args:
        subject (Subject): Makes one iteration, in which the calls are found.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        distiller = build_distiller(subject.model, schedule='constant')
        distiller.attach()
        subject.loss(subject.copied_batch())
        distiller.detach()
        self.comparison = distiller.labeled
        self.paths = {p for term in distiller.terms for p in term.site.seams}

    def calls(self) -> list[Call]:
        """Return the calls of one iteration, without a graph."""
        plan = self.comparison.plan
        with torch.no_grad(), record(self.subject.model, plan.seams) as calls:
            self.subject.loss(self.subject.copied_batch())
        groups = slice_back(calls, self.paths, self.comparison.mutating)
        repeated = {seam.path for seam in plan.seams if seam.repeat}
        return [group[0] for group in groups if group[0].path in repeated]


@contextmanager
def measured() -> Iterator[list[Any]]:
    """Measure a block: yields a list that holds its seconds and peak bytes at the end.

    The device is waited for at both ends. Garbage is not collected in between.
    """
    result: list[Any] = []
    on_device = torch.cuda.is_available()
    collecting = gc.isenabled()
    gc.disable()
    try:
        if on_device:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        yield result
        if on_device:
            torch.cuda.synchronize()
        result.append(time.perf_counter() - started)
        result.append(torch.cuda.max_memory_allocated() if on_device else None)
    finally:
        if collecting:
            gc.enable()


def in_turns(
    kinds: Sequence[str],
    run: Callable[[str], tuple[float, int | None]],
    rounds: int,
    advance: Callable[[], Any] = lambda: None,
    warm_up: int = WARM_UP,
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Run every kind once a round, in random order, after rounds that do not count.

    Args:
        kinds (Sequence[str]): What to run.
        run (Callable): Runs a kind, and returns its seconds and peak bytes.
        rounds (int): How many count.
        advance (Callable): Is called after each run. Defaults to nothing.
        warm_up (int): How many do not count. Defaults to 2.

    Returns:
        tuple: The seconds of each round, and the largest peak, by kind.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    peaks: dict[str, int | None] = dict.fromkeys(kinds)
    for index in range(warm_up + rounds):
        for kind in order.sample(list(kinds), len(kinds)):
            value, peak = run(kind)
            if index >= warm_up:
                seconds[kind].append(value)
                if peak is not None:
                    peaks[kind] = max(peak, peaks[kind] or 0)
            advance()
        gc.collect()
    return seconds, peaks


def bytes_of(model: nn.Module) -> int:
    """Return the memory of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in tensors_of(model).values())
