"""What a teacher adds to a run: of an iteration, and of all of it."""

from __future__ import annotations

import copy
import time
from typing import Callable, Sequence

import torch
from mmengine.config import Config
from mmengine.device import get_device
from rich.progress import track

from mmselfdistill.commands.inspect import first_step, subject_of
from mmselfdistill.commands.quiet import quietly
from mmselfdistill.hooks import GenerationHook
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.schedules import Schedule, build_schedule
from mmselfdistill.testing.builder import step
from mmselfdistill.testing.identity import always

POINTS = 1000
_ROUNDS = 5  # pairs of iterations


def measured_cost(cfg: Config) -> float:
    """Measure an iteration with the teacher, in iterations without it.

    All terms that have a weight are computed, whatever their schedules. Forward and
    backward passes on two images of noise, with random weights, stock and ours in
    turns; the fastest of ours over the fastest of stock, as other processes only slow
    them. Loading of data and the optimizer's step are not in it: where they take long,
    the ratio is smaller.

    Args:
        cfg (Config): Of the distilled run.

    Raises:
        ValueError: If the config's model makes no training step here.
    """
    with quietly():
        subject = subject_of(cfg, None)
    model, distiller = subject.model, subject.distiller
    device = get_device()
    model.to(device)
    assert distiller.teacher is not None
    distiller.teacher.to(device)
    batch = model.data_preprocessor.cast_data(subject.batch)
    first_step(subject._replace(batch=batch))
    always(distiller)
    times = []
    for index in track(range(_ROUNDS + 1), 'Measuring the cost of the teacher'):
        stock = seconds(lambda: step(model, batch))
        distiller.attach()
        ours = seconds(lambda: step(model, batch))
        distiller.detach()
        # the first iteration tries every term
        if index > 0:
            times.append((ours, stock))
    ours, stock = map(min, zip(*times))
    return max(1.0, ours / stock)


def seconds(run: Callable[[], None]) -> float:
    """Return the seconds that something takes, on the device too."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def schedules_of(cfg: Config, hook: DistillHook) -> list[Schedule]:
    """Return the schedule of each term of a config's hook that has a weight.

    Raises:
        ValueError: If no family covers the model, or a term is wrong.
    """
    if not hook.terms:
        return [build_schedule(hook.schedule, 'schedule')]
    with quietly():
        terms = subject_of(copy.deepcopy(cfg), None).distiller.terms
    return [term.schedule for term in terms if term.weight > 0]


def teachers_share(
    hook: DistillHook, schedules: Sequence[Schedule], length: int
) -> float:
    """Return the share of a run's iterations in which the teacher is run.

    It is not where there is none yet, where all terms have a weight of 0, or where the
    hook's ``every`` leaves an iteration out.

    Args:
        hook (DistillHook): The hook.
        schedules (Sequence[Schedule]): Of its terms.
        length (int): Of the config's run, in the unit that its loop counts.
    """
    generations = 1.0
    if isinstance(hook, GenerationHook):
        generations = hook.generations or length / (hook.interval or length)
    active = 0
    for point in range(POINTS):
        run = (point + 0.5) / POINTS
        generation, part = divmod(run * generations, 1)
        if isinstance(hook, GenerationHook) and generation == 0:
            continue
        active += any(s(run if s.over == 'run' else part) > 0 for s in schedules)
    return active / POINTS / hook.every


def times_as_long(
    hook: DistillHook, schedules: Sequence[Schedule], length: int, cost: float
) -> float:
    r"""Return how many times a plain run of the config a distilled one takes.

    With :math:`n` the number of generations that lengthen the run, :math:`c` the cost
    of an iteration with the teacher in plain ones, and :math:`s` the share of
    iterations with it:

    .. math:: n \, (1 + (c - 1) \, s)

    Args:
        hook (DistillHook): The hook.
        schedules (Sequence[Schedule]): Of its terms.
        length (int): Of the config's run, in the unit that its loop counts.
        cost (float): :math:`c`, at least 1.
    """
    generations = getattr(hook, 'generations', None) or 1
    return generations * (1 + (cost - 1) * teachers_share(hook, schedules, length))
