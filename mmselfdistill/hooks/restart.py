"""Beginning anew: schedules, optimizer state and weights."""

from __future__ import annotations

import copy
from typing import Any, Iterator

import torch
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmselfdistill.teacher import broadcast_from_rank_0, tensors_of

from .base import bare_model


class Beginning:
    """The schedules as they are before the first step, to be put back.

    MMEngine's schedulers scale the value that a parameter group has at present,
    so the groups' values are put back with the schedulers' own state.

    Args:
        runner (Runner): With optimizer and schedulers built, and no step made.

    Attributes:
        state (dict): Plain numbers and lists: what a checkpoint holds.
    """

    def __init__(self, runner: Runner) -> None:
        self.state: dict[str, Any] = dict(
            groups=[
                [copy.deepcopy(_settings(group)) for group in wrapper.param_groups]
                for wrapper in optim_wrappers(runner)
            ],
            schedulers=[
                copy.deepcopy(scheduler.state_dict())
                for scheduler in _schedulers(runner)
            ],
        )

    def restore(self, runner: Runner) -> None:
        """Put every scheduled value and scheduler back to its beginning."""
        state = copy.deepcopy(self.state)
        for wrapper, groups in zip(optim_wrappers(runner), state['groups']):
            for group, settings in zip(wrapper.param_groups, groups):
                group.update(settings)
        for scheduler, each in zip(_schedulers(runner), state['schedulers']):
            scheduler.load_state_dict(each)


def reinitialize(runner: Runner, generation: int) -> None:
    """Give the student fresh weights, and empty its optimizer's state.

    The weights depend on the run's seed and the generation alone, so that a run
    resumed at a boundary draws the same ones; they are equal on all ranks.

    Args:
        runner (Runner): Was made from a config, which has the model.
        generation (int): Index of the generation that begins.
    """
    student = bare_model(runner)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((runner.seed or 0) + generation)
        fresh: Any = MODELS.build(copy.deepcopy(runner.cfg.model))
        if hasattr(fresh, 'init_weights'):
            fresh.init_weights()
    values = tensors_of(fresh)
    with torch.no_grad():
        for name, tensor in tensors_of(student).items():
            tensor.copy_(values[name])
    broadcast_from_rank_0(tensors_of(student).values())
    for wrapper in optim_wrappers(runner):
        wrapper.optimizer.state.clear()
        wrapper.zero_grad()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            # its next update copies instead of averaging with the old weights
            hook.ema_model.steps.zero_()


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers, of which there are several for few models."""
    wrapper = runner.optim_wrapper
    return (
        list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    )


def _schedulers(runner: Runner) -> Iterator[Any]:
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        for each in schedulers.values():
            yield from each
    else:
        yield from schedulers


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != 'params'}
