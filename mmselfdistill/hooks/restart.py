"""Restarts: schedules, optimizer state and weights go back to their beginning."""

from __future__ import annotations

import copy
from itertools import chain
from math import inf
from typing import Any, Mapping

import torch
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmselfdistill.core.streams import forked_rng
from mmselfdistill.core.teacher import (
    broadcast_from_rank_0,
    saved_buffers,
    tensors_of,
)
from mmselfdistill.seeds import seeded

from .run import bare_model, optim_wrappers, schedulers_of


class Beginning:
    """Schedules and losses as they are before the first step, to be put back.

    MMEngine's schedulers scale the value that a parameter group has at present,
    so the groups' values are put back with the schedulers' own state.

    Args:
        runner (Runner): With optimizer and schedulers built, and no step made.
        losses (Mapping[str, nn.Module]): Losses that learn, by the names of terms.

    Attributes:
        state (dict): Plain numbers, lists and tensors: what a checkpoint holds.
    """

    def __init__(self, runner: Runner, losses: Mapping[str, nn.Module]) -> None:
        self.state: dict[str, Any] = dict(
            groups=[
                [copy.deepcopy(_settings(group)) for group in wrapper.param_groups]
                for wrapper in optim_wrappers(runner)
            ],
            schedulers={
                name: copy.deepcopy(_data(scheduler.state_dict()))
                for name, scheduler in schedulers_of(runner).items()
            },
            losses={
                name: {key: t.cpu().clone() for key, t in loss.state_dict().items()}
                for name, loss in losses.items()
            },
        )

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Take the state of the run that is resumed.

        What was added since then keeps its own: schedulers, and the losses of images
        without labels.
        """
        merged = {
            key: {**self.state[key], **saved[key]} for key in ('losses', 'schedulers')
        }
        self.state.update(saved, **merged)

    def restore_losses(self, losses: Mapping[str, nn.Module]) -> None:
        """Put the weights of losses back to their beginning."""
        for name, loss in losses.items():
            loss.load_state_dict(self.state['losses'][name], strict=True)

    def restore(self, runner: Runner) -> None:
        """Put every scheduled value, scheduler and patience back to its beginning."""
        state = copy.deepcopy(self.state)
        for wrapper, groups in zip(optim_wrappers(runner), state['groups']):
            for group, settings in zip(wrapper.param_groups, groups):
                group.update(settings)
        for name, scheduler in schedulers_of(runner).items():
            scheduler.load_state_dict(state['schedulers'][name])
        for hook in runner.hooks:
            if isinstance(hook, EarlyStoppingHook):
                # its patience is that of one schedule
                hook.wait_count = 0
                hook.best_score = -inf if hook.rule == 'greater' else inf


def fresh_model(runner: Runner, generation: int) -> nn.Module:
    """Build another model from the run's config, as the Runner does.

    The weights depend on the run's seed and the generation alone, so that a run
    resumed at a boundary draws the same ones. No random stream of the run is moved.

    Args:
        runner (Runner): Was made from a config, which has the model.
        generation (int): Index of the generation that begins.
    """
    cfg = copy.deepcopy(runner.cfg.model)
    preprocessor = runner.cfg.get('data_preprocessor')
    if preprocessor is not None:
        cfg.setdefault('data_preprocessor', copy.deepcopy(preprocessor))
    seed = (runner.seed or 0) + generation
    with forked_rng(), seeded(seed):
        # those of the devices too
        torch.manual_seed(seed)
        fresh: Any = MODELS.build(cfg)
        if hasattr(fresh, 'init_weights'):
            fresh.init_weights()
    return fresh


def try_fresh_model(runner: Runner) -> None:
    """See before the first step that the student can be given fresh weights.

    Raises:
        ValueError: If a fresh model is not like the student.
    """
    try:
        fresh = fresh_model(runner, 1)
    except Exception as error:
        raise ValueError(
            "GenerationHook: student='reinit' cannot build a fresh model from the "
            f'config: {type(error).__name__}: {error}'
        ) from error
    wrong = _differences(bare_model(runner), fresh)
    if wrong:
        raise ValueError(
            "GenerationHook: student='reinit' builds a model that is not the student:"
            '\n  ' + '\n  '.join(wrong)
        )


def _differences(student: nn.Module, fresh: nn.Module) -> list[str]:
    ours, theirs = tensors_of(student), tensors_of(fresh)
    buffers = dict(student.named_buffers())
    found = [
        f'{name}: {tuple(theirs[name].shape)} in the fresh model, '
        f'{tuple(tensor.shape)} in the student'
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    # a model may make a buffer at its first forward
    lacking = ours.keys() - theirs.keys() - buffers.keys()
    found += [f'{name}: not in the fresh model' for name in sorted(lacking)]
    more = theirs.keys() - ours.keys()
    return found + [f'{name}: not in the student' for name in sorted(more)]


def reinitialize(runner: Runner, generation: int) -> None:
    """Give the student fresh weights, and empty its optimizer's state.

    They are equal on all ranks. What the model averages of itself starts as at
    the start of the run. Buffers that it made, or gave their size, in a forward stay.

    Args:
        runner (Runner): Was made from a config, which has the model.
        generation (int): Index of the generation that begins.
    """
    student = bare_model(runner)
    values = tensors_of(fresh_model(runner, generation))
    with torch.no_grad():
        for name, tensor in tensors_of(student).items():
            value = values.get(name, tensor)
            if value.shape == tensor.shape:
                tensor.copy_(value)
    broadcast_from_rank_0(chain(student.parameters(), saved_buffers(student)))
    for wrapper in optim_wrappers(runner):
        wrapper.optimizer.state.clear()
        wrapper.zero_grad()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            # its next update copies instead of averaging with the old weights
            hook.ema_model.steps.zero_()
        if callable(getattr(hook, 'momentum_update', None)):
            # the teacher that a semi-supervised model has itself: a copy
            hook.momentum_update(student, 1)


def _data(state: dict[str, Any]) -> dict[str, Any]:
    # OneCycleLR keeps a function: loading leaves it as it is
    return {key: value for key, value in state.items() if not callable(value)}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != 'params'}
