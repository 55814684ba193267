"""Validate the teacher: it is a product of the run too."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Mapping

import torch
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import nn

from mmselfdistill.core.streams import forked_rng

from .run import schedulers_of

VALIDATE = ('student', 'teacher', 'both')
PREFIX = 'teacher/'


class Evaluated:
    """The other side predicts for a while, with the teacher in evaluation mode.

    Args:
        distiller (Distiller): With a teacher, whose modules get back the mode that each
            has: its own is of training.
    """

    def __init__(self, distiller: Any) -> None:
        self._distiller = distiller
        teacher: nn.Module = distiller.teacher
        self._modes = [(module, module.training) for module in teacher.modules()]
        teacher.eval()
        # after the run the student's forward is its own again
        self._attached: bool = distiller.attach()
        distiller.predicts = not distiller.predicts

    def end(self) -> None:
        """Put every module back into its mode."""
        for module, mode in self._modes:
            module.training = mode
        self._distiller.predicts = not self._distiller.predicts
        if self._attached:
            self._distiller.detach()


def drop_other_side(runner: Runner, found: Mapping[str, Any]) -> None:
    """Drop the old metrics of the side that was not validated.

    MMEngine would log the last ones again, as if they were new.

    Args:
        runner (Runner): The run.
        found (Mapping): The metrics of this validation.
    """
    scalars = runner.message_hub.log_scalars
    for key in [key for key in scalars if key.startswith('val/')]:
        name = key[len('val/') :]
        own = name.startswith(PREFIX)
        other = name[len(PREFIX) :] if own else f'{PREFIX}{name}'
        if name not in found and other in found:
            del scalars[key]


def metrics_needed(runner: Runner) -> Iterator[tuple[str, str]]:
    """Yield the metrics that a run looks up at its validations, after where it does."""
    for each in runner.hooks:
        given = getattr(each, 'save_best', None)
        if isinstance(each, CheckpointHook) and given:
            for key in [given] if isinstance(given, str) else given:
                yield 'save_best', key
        elif isinstance(each, EarlyStoppingHook):
            yield 'EarlyStoppingHook.monitor', each.monitor
    for scheduler in schedulers_of(runner).values():
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            yield f'{type(scheduler).__name__}.monitor', scheduler.monitor


def names_its_own(runner: Runner) -> bool:
    """Say whether a run validates a student and a teacher of the model itself."""
    # MMDetection's, of models such as SoftTeacher
    kinds = type(getattr(runner, '_val_loop', None)).__mro__
    return any(kind.__name__ == 'TeacherStudentValLoop' for kind in kinds)


def check_metrics(hook: Any, runner: Runner) -> None:
    """See that each metric that the run looks up is there at every validation.

    MMEngine fails where one is missing, or goes on without it: hours later, at a
    boundary.

    Raises:
        ValueError: If it is not.
    """
    own = names_its_own(runner)
    if own and hook.validate != 'student':
        raise ValueError(
            f"validate: expected 'student', but got {hook.validate!r}: "
            "TeacherStudentValLoop validates the model's own teacher, whose metrics "
            'have the names of ours'
        )
    for where, key in metrics_needed(runner):
        of_teacher = key.startswith(PREFIX) and not own
        if of_teacher and hook.validate == 'student':
            raise ValueError(
                f'{where}: {key!r} is of the teacher, which is not validated; set '
                "validate='both' or 'teacher' of the self-distillation hook"
            )
        if hook.validate == 'teacher' and not of_teacher and key != 'auto':
            raise ValueError(
                f"{where}: {key!r} is of the student, but validate='teacher'; use "
                f"'{PREFIX}{key}', or validate='both'"
            )
        if hook.late and (of_teacher or hook.validate == 'teacher'):
            raise ValueError(
                f'{where}: {key!r} is of the teacher, and {type(hook).__name__} has '
                "none in its first generation; use validate='both' with a metric of "
                'the student'
            )


@torch.no_grad()
def validate(runner: Runner, distiller: Any) -> dict[str, Any]:
    """Return the metrics of the teacher, ahead of a validation of the student.

    They are of the run's own loader and evaluator, which may print what they find. The
    random streams are moved as by the student's validation alone.
    """
    loop: Any = runner.val_loop
    model: Any = runner.model
    runner.logger.info('self_distill: the teacher is validated first, then the student')
    model.eval()
    loader = loop.dataloader
    # workers that are kept draw their seed now, and not again for the student
    batches = iter(loader) if getattr(loader, 'persistent_workers', False) else None
    with _predicting(runner, distiller):
        for batch in loader if batches is None else batches:
            outputs = model.val_step(batch)
            last = outputs[-1]
            # a loss, which MMEngine takes out too: it is no image
            if isinstance(last, BaseDataElement) and last.keys() == ['loss']:
                outputs = outputs[:-1]
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return dict(loop.evaluator.evaluate(len(loader.dataset)))


@torch.no_grad()
def predict(runner: Runner, distiller: Any, batch: Any) -> Any:
    """Return what is predicted of a batch by the one that is not validated.

    That is the teacher, or the student where the teacher is validated. No random stream
    is moved, and each module keeps its mode.
    """
    with _predicting(runner, distiller):
        return runner.model.val_step(batch)


@contextmanager
def _predicting(runner: Runner, distiller: Any) -> Iterator[None]:
    evaluated = Evaluated(distiller)
    try:
        with forked_rng(), autocast(enabled=runner.val_loop.fp16):
            yield
    finally:
        evaluated.end()


def of_teacher(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics under the names of the teacher's."""
    return {f'{PREFIX}{key}': value for key, value in metrics.items()}
