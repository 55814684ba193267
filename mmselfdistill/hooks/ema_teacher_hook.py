"""A running average of the student as its teacher."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Sequence

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmselfdistill.core.teacher import Average, copy_into
from mmselfdistill.core.terms import ScheduleConfig, TermConfigs
from mmselfdistill.errors import check_number

from .base import DistillHook, bare_model
from .optimizers import optim_wrappers


@HOOKS.register_module()
class EMATeacherHook(DistillHook):
    r"""Distils from a running average of the student (arXiv 1703.01780).

    After each optimizer step, the :math:`t`-th of the run,

    .. math::
        \theta_T \leftarrow m_t \, \theta_T + (1 - m_t) \, \theta_S, \quad
        m_t = \min\left(m, \frac{1 + t}{10 + t}\right),

    for parameters and for the running statistics of norms; other buffers are copied.
    The first weights are soon forgotten. Under gradient accumulation this is once for
    each real step.

    Args:
        momentum (float): The share :math:`m` that the teacher keeps. Defaults
            to 0.999.
        terms (dict, optional): See :class:`DistillHook`. Defaults to None.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.
        schedule (dict | str, optional): Weight over the run. Defaults to None:
            0 for the first 15 %, while the teacher is too young to teach, then
            a ramp to 1 over the next 15 %.
        seams (Sequence[str]): See :class:`DistillHook`. Defaults to ().

    Raises:
        ValueError: If a value is wrong.
    """

    default_schedule = MappingProxyType(dict(type='constant', begin=0.15, warmup=0.15))

    def __init__(
        self,
        momentum: float = 0.999,
        terms: TermConfigs | None = None,
        loss_weight: float = 1.0,
        schedule: ScheduleConfig = None,
        seams: Sequence[str] = (),
        **unknown: Any,
    ) -> None:
        super().__init__(terms, loss_weight, schedule, seams, **unknown)
        self.momentum = check_number('momentum', momentum, 0.0, 1.0)
        self._average: Average | None = None

    def before_train(self, runner: Runner) -> None:
        """Make the teacher, and pair its tensors with the student's."""
        super().before_train(runner)
        assert self.distiller is not None and self.distiller.teacher is not None
        self._average = Average(self.distiller.teacher, bare_model(runner))

    def init_teacher(self, runner: Runner, teacher: nn.Module) -> None:
        """Start from the student."""
        assert self.distiller is not None
        copy_into(teacher, bare_model(runner))
        self.distiller.teacher = teacher

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Average, if the optimizer made a step in this iteration."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        assert self._average is not None
        if any(each.should_update() for each in optim_wrappers(runner)):
            young = (1 + self.updates) / (10 + self.updates)
            self._average.update(min(self.momentum, young))
            self.updates += 1
