"""What the three hooks share: building, progress, saving and resuming."""

from __future__ import annotations

import inspect
from typing import Any, Mapping

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn

from mmselfdistill.distiller import Distiller, build_distiller
from mmselfdistill.errors import check_number, nearest
from mmselfdistill.schedules import build_schedule
from mmselfdistill.teacher import make_teacher, mismatches
from mmselfdistill.terms import ScheduleConfig, TermConfigs, differences

STATE_KEY = 'mmselfdistill'
STATE_VERSION = 1
_STATE_PARTS = {'teacher', 'generation', 'updates', 'terms'}


class DistillHook(Hook):
    """Builds the distiller before training, and keeps its state in checkpoints.

    A subclass says where the teacher comes from and when it changes.

    Args:
        terms (dict, optional): Terms by name; they merge over the defaults of
            the model's family key by key. Defaults to None.
        loss_weight (float): Multiplies all terms; at 0 the teacher is not run.
            Defaults to 1.0.
        schedule (dict | str, optional): Weight over time of the terms without
            one of their own. Defaults to None: the hook's own default.
        **unknown: Nothing; taken to name what was meant in the message.

    Raises:
        ValueError: If a value is wrong.
    """

    default_schedule: ScheduleConfig = None

    def __init__(
        self,
        terms: TermConfigs | None = None,
        loss_weight: float = 1.0,
        schedule: ScheduleConfig = None,
        **unknown: Any,
    ) -> None:
        check_arguments(type(self), unknown)
        self.terms = terms
        self.loss_weight = check_number('loss_weight', loss_weight, 0.0)
        self.schedule = self.default_schedule if schedule is None else schedule
        build_schedule(self.schedule, 'schedule')
        self.generation = 0
        self.updates = 0
        self.distiller: Distiller | None = None
        self._teacher: nn.Module | None = None
        self._resumed: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Build teacher and terms: weights are loaded, no step is made yet."""
        student = bare_model(runner)
        _check_alone(self, runner)
        self.distiller = build_distiller(
            student, self.terms, self.schedule, self.loss_weight
        )
        self._teacher = make_teacher(student)
        if self._resumed is None:
            self.init_teacher(runner)
        else:
            self._restore(self._resumed)
        self._resumed = None
        self.distiller.attach()

    def init_teacher(self, runner: Runner) -> None:
        """Give the teacher its first weights; called unless a run is resumed."""
        raise NotImplementedError

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Tell the distiller the position in [0, 1] on which schedules depend."""
        assert self.distiller is not None
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.distiller.progress = epochs_done(runner, batch_idx) / runner.max_epochs
        else:
            self.distiller.progress = runner.iter / runner.max_iters

    def after_train(self, runner: Runner) -> None:
        """Leave the student as it was."""
        if self.distiller is not None:
            self.distiller.detach()

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add our state under one key; the student's own keys stay as they are."""
        if self.distiller is None:
            return
        teacher = self.distiller.teacher
        checkpoint[STATE_KEY] = dict(
            **self.identity(),
            teacher=None if teacher is None else weights_to_cpu(teacher.state_dict()),
            generation=self.generation,
            updates=self.updates,
            terms={term.name: term.config for term in self.distiller.terms},
        )

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a run is resumed, besides the terms."""
        return dict(version=STATE_VERSION, hook=type(self).__name__)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep our state of a resumed checkpoint until the teacher is built."""
        if not runner._resume:
            return
        if STATE_KEY not in checkpoint:
            raise ValueError(
                'resume: the checkpoint holds no state of mmselfdistill, it was '
                'written without this hook. To begin self-distillation from its '
                'weights, use load_from without resume'
            )
        state = checkpoint[STATE_KEY]
        if not isinstance(state, dict) or _STATE_PARTS - state.keys():
            raise ValueError(
                f'resume: the state under {STATE_KEY!r} in the checkpoint is broken: '
                f'expected a dict with {sorted(_STATE_PARTS)}'
            )
        self._resumed = state

    def _restore(self, state: dict[str, Any]) -> None:
        assert self.distiller is not None and self._teacher is not None
        wrong = [
            f'{key}: {state.get(key)!r} in the checkpoint, {value!r} now'
            for key, value in self.identity().items()
            if state.get(key) != value
        ]
        terms = {term.name: term.config for term in self.distiller.terms}
        wrong += differences(terms, state['terms'])
        if state['teacher'] is not None:
            differing = mismatches(self._teacher.state_dict(), state['teacher'])
            wrong += [f'teacher: {each}' for each in differing]
        if wrong:
            raise ValueError(
                'resume: the run in the checkpoint was another one:\n  '
                + '\n  '.join(wrong)
            )
        self.generation, self.updates = state['generation'], state['updates']
        if state['teacher'] is not None:
            self._teacher.load_state_dict(state['teacher'], strict=True)
            self.distiller.teacher = self._teacher


def _check_alone(hook: DistillHook, runner: Runner) -> None:
    kinds = [
        type(each).__name__ for each in runner.hooks if isinstance(each, DistillHook)
    ]
    if len(kinds) > 1:
        raise ValueError(
            f'self_distill: a run has one hook of mmselfdistill, but got {kinds}; set '
            'all but one of them to None in default_hooks, or remove them from '
            'custom_hooks'
        )


def check_arguments(hook: type[DistillHook], unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that a hook does not have, and name those that it has.

    Raises:
        ValueError: If there is one.
    """
    parameters = inspect.signature(hook).parameters.values()
    valid = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for name in unknown:
        raise ValueError(
            f'{hook.__name__} has no argument {name!r}; {nearest(name, valid)}'
        )


def epochs_done(runner: Runner, batch_idx: int) -> float:
    """Return how many epochs are done, the present one by its share of batches.

    Iterations do not tell: a resumed run may have another batch size.
    """
    return float(runner.epoch + batch_idx / len(runner.train_loop.dataloader))


def bare_model(runner: Runner) -> nn.Module:
    """Return the model without its wrapper.

    Raises:
        ValueError: If its parameters are sharded.
    """
    model = runner.model
    if 'FullySharded' in type(model).__name__:
        raise ValueError(
            'self_distill: FSDP shards the parameters that a teacher has to copy, '
            'which is not supported; use DDP (launcher pytorch or slurm)'
        )
    return model.module if is_model_wrapper(model) else model
