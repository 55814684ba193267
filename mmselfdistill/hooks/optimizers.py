"""Optimizers and schedulers of a Runner, in whichever form it holds them."""

from __future__ import annotations

from typing import Any, Iterator

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers, of which there are several for few models."""
    wrapper = runner.optim_wrapper
    return (
        list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    )


def schedulers_of(runner: Runner) -> Iterator[Any]:
    """Yield the schedulers of a run, whose config may group them by optimizer."""
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        for each in schedulers.values():
            yield from each
    else:
        yield from schedulers


def optimizer_steps(runner: Runner) -> float:
    """Return how many steps the optimizer makes in the run, of several the quickest."""
    counts = [wrapper._accumulative_counts for wrapper in optim_wrappers(runner)]
    return float(runner.max_iters / min(counts))
