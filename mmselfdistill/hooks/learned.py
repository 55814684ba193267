"""Losses with parameters of their own, trained by the optimizer of the run.

A projector is no part of the student: its parameters are a group of their own in the
optimizer, and are saved under our key of a checkpoint.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.optim.scheduler.param_scheduler import (
    OneCycleParamScheduler,
    ReduceOnPlateauParamScheduler,
)
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.autograd import Variable

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import broadcast_from_rank_0, tensors_of

from .run import optim_wrappers, schedulers_of


def losses_of(distiller: Distiller) -> dict[str, nn.Module]:
    """Return the losses that have parameters or buffers, by the names of terms."""
    return {term.name: term.loss for term in distiller.terms if tensors_of(term.loss)}


def train_losses(runner: Runner, distiller: Distiller) -> None:
    """Put the parameters of the losses on the student's device and into the optimizer.

    They learn with the optimizer's own default settings, and follow its schedules.

    Raises:
        ValueError: If the run has several optimizers, or could not be resumed.
    """
    device = next(distiller.student.parameters()).device
    losses = losses_of(distiller)
    for loss in losses.values():
        loss.to(device)
        broadcast_from_rank_0(tensors_of(loss).values())
    # an optimizer's state goes by position, and a config that was dumped is sorted
    every = [p for name in sorted(losses) for p in losses[name].parameters()]
    parameters = [each for each in every if each.requires_grad]
    if not parameters:
        return
    if not isinstance(runner, Runner):
        raise ValueError(
            f'terms: {", ".join(losses)} have parameters, and {type(runner).__name__} '
            'loads the optimizer before any hook can add these: the run could not be '
            'resumed. Use Runner, or a loss without a projector'
        )
    wrappers = optim_wrappers(runner)
    if len(wrappers) > 1:
        raise ValueError(
            f'terms: {", ".join(losses)} have parameters, but the run has '
            f'{len(wrappers)} optimizers: it is not clear which one trains them'
        )
    if get_world_size() > 1:
        AveragedGradients(parameters)
    optimizer = wrappers[0].optimizer
    optimizer.add_param_group(dict(params=parameters))
    optimizer.param_groups[-1]['lr'] *= _scale_of_lr(runner)
    # schedulers are built, and the warm-up of the first step has been applied
    for scheduler in schedulers_of(runner).values():
        _schedule(scheduler, optimizer.param_groups)


class AveragedGradients:
    """Averages gradients over ranks, as DDP does with those of the student.

    At the end of a backward pass, since the order in which they are ready depends on
    the branches that a rank's batch has taken. Where gradients are accumulated, those
    of the passes before are averages already, which an average leaves as they are.

    Args:
        parameters (Sequence[nn.Parameter]): In the same order on each rank. A pass
            reaches the same of them on each.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._reached: set[int] = set()
        for index, parameter in enumerate(parameters):
            hook = partial(self._note, index)
            parameter.register_hook(hook)  # type: ignore[no-untyped-call]

    def _note(self, index: int, gradient: Tensor) -> None:
        self._reached.add(index)
        # DDP ends its passes so too
        Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        reached = [self._parameters[index] for index in sorted(self._reached)]
        self._reached.clear()
        gradients = [each.grad for each in reached if each.grad is not None]
        all_reduce_params(gradients, op='mean')


def _scale_of_lr(runner: Runner) -> float:
    """Return by what MMEngine's ``auto_scale_lr`` multiplies a learning rate."""
    # FlexibleRunner keeps it to itself
    names = 'auto_scale_lr', '_auto_scale_lr'
    scaling = next((vars(runner)[n] for n in names if n in vars(runner)), None) or {}
    if not scaling.get('enable', False):
        return 1.0
    # as it was given, a config or built: MMEngine counts by that
    loader: Any = runner._train_dataloader
    size = loader['batch_size'] if isinstance(loader, dict) else loader.batch_size
    return float(get_world_size() * size / scaling['base_batch_size'])


def _schedule(scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """Let a scheduler that is built change the last group as it does the first."""
    name, (first, *_, group) = scheduler.param_name, groups
    initial = f'initial_{name}'
    if getattr(scheduler, 'use_betas', False):
        group.setdefault(name, group['betas'][0])
    if isinstance(scheduler, OneCycleParamScheduler):
        # its bounds are its own, not the group's
        bounds = initial, f'max_{name}', f'min_{name}'
        group.update({key: first[key] for key in bounds})
    start = group.setdefault(initial, group[name])
    plateau = isinstance(scheduler, ReduceOnPlateauParamScheduler)
    values = scheduler.min_values if plateau else scheduler.base_values
    # what MMEngine's wrapper notes of the optimizer itself comes after the groups
    values.insert(len(groups) - 1, values[-1] if plateau else start)
    # one at 0 does not say how far it is
    shown = next((each for each in groups[:-1] if each.get(initial)), None)
    if shown is not None:
        group[name] = start * shown[name] / shown[initial]
