"""A running average of the student as its teacher."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmselfdistill.core.teacher import Average, copy_into
from mmselfdistill.errors import check_number

from .base import DistillHook
from .run import bare_model, optim_wrappers, optimizer_steps

_HORIZON = 0.01
_FEWEST_STEPS = 10  # an average of fewer is the student itself


@HOOKS.register_module()
class EMATeacherHook(DistillHook):
    r"""Distils from a running average of the student (arXiv 1703.01780).

    After each optimizer step, the :math:`t`-th of the run counted from 0,

    .. math::
        \theta_T \leftarrow m_t \, \theta_T + (1 - m_t) \, \theta_S, \quad
        m_t = \min\left(m, \frac{1 + t}{10 + t}\right),

    for parameters and for the running statistics of norms; other buffers are copied.
    The first weights are soon forgotten: :math:`m` is reached at the step
    :math:`(10 m - 1) / (1 - m)`, a horizon after nine times its own share of the run.
    Under gradient accumulation this is once for each real step.

    Args:
        momentum (float, optional): The share :math:`m` that the teacher keeps. Defaults
            to None: that of the horizon.
        horizon (float, optional): How far the average looks back, as a share of the
            run's optimizer steps, but at least 10 of them:
            :math:`m = 1 - 1 / \max(horizon \cdot steps, 10)`. One setting then serves
            runs of any length. Above 1 / 9 it is reached in none. Give this or
            ``momentum``. Defaults to None: 0.01, unless a momentum is given.
        freeze (float): Position in the run, in (0, 1], from which on the teacher stays
            as it is. It cannot follow a student that learns wrong labels by heart, nor
            its own mistakes. Defaults to 1.0: never.
        **shared: What all hooks take: see :class:`DistillHook`. The schedule's default
            is 0 for the first half of the run, while the student learns fast and its
            average would hold it back, then a ramp to 1 over the next 20 %.

    Raises:
        ValueError: If a value is wrong. Before training also if a parameter that trains
            is kept in half precision.
    """

    default_schedule = MappingProxyType(dict(type='constant', begin=0.5, warmup=0.2))

    def __init__(
        self,
        momentum: float | None = None,
        horizon: float | None = None,
        freeze: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if momentum is not None and horizon is not None:
            raise ValueError(
                'EMATeacherHook: expected either momentum or horizon, but got '
                f'momentum={momentum!r} and horizon={horizon!r}'
            )
        if horizon is not None:
            check_number('horizon', horizon, 0.0, 1.0, above_low=True)
        self._given = momentum is not None or horizon is not None
        self.horizon = _HORIZON if momentum is None and horizon is None else horizon
        # that of a horizon is known when the run begins
        given = 0.0 if momentum is None else momentum
        self.momentum = check_number('momentum', given, 0.0, 1.0)
        self.freeze = check_number('freeze', freeze, 0.0, 1.0, above_low=True)
        self._average: Average | None = None

    def before_train(self, runner: Runner) -> None:
        """Make the teacher, and pair its tensors with the student's.

        Raises:
            ValueError: If a parameter that trains is kept in half precision.
        """
        _check_precise(bare_model(runner))
        super().before_train(runner)
        assert self.distiller is not None and self.distiller.teacher is not None
        self._average = Average(self.distiller.teacher, bare_model(runner))
        steps = optimizer_steps(runner)
        if self.horizon is not None:
            self.momentum = 1 - 1 / max(self.horizon * steps, _FEWEST_STEPS)
        most = _warm(steps - 1)
        if self._given and self.momentum > most:
            runner.logger.warning(
                f'EMATeacherHook: the momentum, {self.momentum:.6g}, is not reached in '
                f'the {steps:g} steps of the run: at step t the teacher keeps '
                f'(1 + t) / (10 + t) at most, {most:.4g} at the last one.'
            )

    def init_teacher(self, runner: Runner, teacher: nn.Module) -> nn.Module:
        """Start from the student."""
        copy_into(teacher, bare_model(runner))
        return teacher

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Average, if the optimizer made a step, and the teacher is not frozen yet."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        assert self.distiller is not None and self._average is not None
        if self.distiller.run_progress >= self.freeze:
            return
        if any(each.should_update() for each in optim_wrappers(runner)):
            with self.distiller.averaging():
                self._average.update(min(self.momentum, _warm(self.updates)))
            self.updates += 1


def _warm(step: float) -> float:
    """Return the largest share that the teacher keeps at a step, counted from 0."""
    return (1 + step) / (10 + step)


def _check_precise(student: nn.Module) -> None:
    for name, each in student.named_parameters():
        if each.requires_grad and each.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f'EMATeacherHook: {name} trains in {each.dtype}: a step of its average '
                'is smaller than that can hold, so the teacher would stand still. Keep '
                'the weights in float32, and train with AmpOptimWrapper'
            )
