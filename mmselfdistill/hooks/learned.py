"""Losses with parameters of their own, trained by the optimizer of the run.

A projector is no part of the student: its parameters are a group of their own in the
optimizer, and are saved under our key of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn

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
        ValueError: If the run has several optimizers.
    """
    device = next(distiller.student.parameters()).device
    losses = losses_of(distiller)
    for loss in losses.values():
        loss.to(device)
        with torch.no_grad():
            broadcast_from_rank_0(tensors_of(loss).values())
    parameters = [p for loss in losses.values() for p in loss.parameters()]
    if not parameters:
        return
    wrappers = optim_wrappers(runner)
    if len(wrappers) > 1:
        raise ValueError(
            f'terms: {", ".join(losses)} have parameters, but the run has '
            f'{len(wrappers)} optimizers: it is not clear which one trains them'
        )
    for parameter in parameters:
        parameter.register_hook(_averaged)  # type: ignore[no-untyped-call]
    optimizer = wrappers[0].optimizer
    optimizer.add_param_group(dict(params=parameters))
    _schedule(runner, optimizer.param_groups[-1], optimizer.param_groups[0])


def _averaged(gradient: Tensor) -> Tensor:
    """Average a gradient over ranks, as DDP does with those of the student."""
    if get_world_size() > 1:
        all_reduce(gradient, 'mean')
    return gradient


def _schedule(runner: Runner, group: dict[str, Any], first: dict[str, Any]) -> None:
    # schedulers are built, and the warm-up of the first step has been applied
    for scheduler in schedulers_of(runner):
        name = scheduler.param_name
        start = group.setdefault(f'initial_{name}', group[name])
        scheduler.base_values.append(start)
        if first.get(f'initial_{name}'):
            group[name] = start * first[name] / first[f'initial_{name}']
