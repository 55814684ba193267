"""What the three hooks share: building, progress, saving and resuming."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmselfdistill.core.attached import release
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.terms import ScheduleConfig, TermConfigs
from mmselfdistill.errors import check_choice, check_number, check_whole
from mmselfdistill.schedules import build_schedule
from mmselfdistill.views import build_view

from .buffers import put_buffers, unsaved_buffers
from .learned import train_losses
from .run import (
    bare_model,
    check_alone,
    check_called,
    check_loop,
    check_priority,
    progress_of,
    seed_of_all_ranks,
    tidy_scalars,
)
from .settings import build_dtype, build_task_weight, check_arguments, check_paths
from .state import (
    STATE_KEY,
    STATE_VERSION,
    check_same_run,
    loaded_part,
    restore,
    resumed_state,
    state_of,
)
from .unlabeled import check_unlabeled, load_unlabeled
from .validation import (
    VALIDATE,
    Evaluated,
    check_metrics,
    drop_other_side,
    of_teacher,
    validate,
)


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
        seams (Sequence[str]): Paths of methods or modules of the model that the
            teacher has to repeat besides those that are found. Defaults to ().
        view (dict, optional): What the student sees of images with labels, while its
            teacher sees them as they are: see :class:`View`. Defaults to None: the
            same.
        unlabeled (dict, optional): Images without labels, on which the teacher teaches
            too: ``data``, a folder or the config of a dataset, and, if wanted,
            ``batch_size``, ``weight``, ``view``, ``pipeline``, ``num_workers``,
            ``skip_broken``, ``statistics`` and ``confidence``. Defaults to None.
        task_weight (float | dict | str, optional): Factor on the losses of the model
            itself: a number, or a schedule over the run. Defaults to None: 1.
        teacher_norm (str, optional): By what the teacher's batch norms normalise, where
            the student's train: 'running' statistics, or those of the 'batch'. Defaults
            to None: 'batch' for a segmentor that scores each pixel, 'running' for other
            models.
        validate (str): What is validated: the 'student', the 'teacher', whose metrics
            are called ``teacher/...``, or 'both'. Defaults to 'student'.
        every (int): The teacher is run in each ``every``-th iteration, and the weights
            are multiplied by it. Defaults to 1.
        teacher_dtype (str, optional): 'float16' or 'bfloat16': the teacher's calls are
            autocast to it. Defaults to None: as the student's are.
        **unknown: Nothing; taken to name what was meant in the message.

    Raises:
        ValueError: If a value is wrong.
    """

    # boundaries come before the learning rate is logged, metrics before they are read
    priority = 'HIGHEST'
    default_schedule: ScheduleConfig = None
    # whether the teacher comes later than the first step
    late = False

    def __init__(
        self,
        terms: TermConfigs | None = None,
        loss_weight: float = 1.0,
        schedule: ScheduleConfig = None,
        seams: Sequence[str] = (),
        view: Mapping[str, Any] | None = None,
        unlabeled: Mapping[str, Any] | None = None,
        task_weight: float | ScheduleConfig = None,
        teacher_norm: str | None = None,
        validate: str = 'student',
        every: int = 1,
        teacher_dtype: str | None = None,
        **unknown: Any,
    ) -> None:
        check_arguments(type(self), DistillHook, unknown)
        self.terms = terms
        self.loss_weight = check_number('loss_weight', loss_weight, 0.0)
        self.schedule = self.default_schedule if schedule is None else schedule
        build_schedule(self.schedule, 'schedule')
        self.seams = check_paths(seams)
        self.view = build_view(view, 'view', labels=True)
        self.unlabeled = check_unlabeled(unlabeled)
        self.task_weight = build_task_weight(task_weight)
        if teacher_norm is not None:
            check_choice('teacher_norm', teacher_norm, ('running', 'batch'))
        self.teacher_norm = teacher_norm
        self.validate = check_choice('validate', validate, VALIDATE)
        self.every = check_whole('every', every, 1)
        self.teacher_dtype = build_dtype(teacher_dtype)
        self.generation = 0
        self.updates = 0
        self.distiller: Distiller | None = None
        self._loaded: dict[str, Any] | None = None
        # the run that was set up, and whether it has begun
        self._loop: BaseLoop | None = None
        self._begun = self._starts = self._resumed = False
        self._forwards = 0
        self._evaluated: Evaluated | None = None
        self._of_teacher: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Set up a run, unless it goes on after a failure."""
        loop = runner._train_loop
        if isinstance(loop, BaseLoop) and loop is not self._loop:
            self.set_up(runner)
            self._loop, self._begun = loop, False

    def set_up(self, runner: Runner) -> None:
        """Build the terms: losses may have parameters for the run's optimizer."""
        check_alone(runner, DistillHook)
        check_priority(self)
        check_loop(runner)
        check_metrics(self, runner)
        unlabeled = self.unlabeled and load_unlabeled(self.unlabeled, runner)
        self.distiller = self.distiller_of(bare_model(runner), unlabeled)
        train_losses(runner, self.distiller)

    def distiller_of(
        self, model: nn.Module, unlabeled: dict[str, Any] | None
    ) -> Distiller:
        """Build a distiller by the hook's settings, without a teacher.

        Args:
            model (nn.Module): The student, not its DDP wrapper.
            unlabeled (dict, optional): Arguments of :class:`Unlabeled`.
        """
        return build_distiller(
            *(model, self.terms, self.schedule, self.loss_weight, self.seams),
            unlabeled,
            view=self.view,
            task_weight=self.task_weight,
            teacher_norm=self.teacher_norm,
            every=self.every,
            teacher_dtype=self.teacher_dtype,
        )

    def before_train(self, runner: Runner) -> None:
        """Make the teacher: weights are loaded, no step is made yet."""
        assert self.distiller is not None
        student = bare_model(runner)
        release(student)
        self._hide_teacher()
        self.distiller.restart()
        if self.distiller.unlabeled is not None:
            # MMEngine has put back the seed of a resumed run by now
            self.distiller.unlabeled.batches.seed = seed_of_all_ranks(runner)
        # what a teacher cannot be made of fails here, not hours later
        teacher = make_teacher(student)
        state = resumed_state(runner, self._loaded, self._begun)
        if state is not None:
            self._restore(state, teacher)
            self._resumed = True
        elif not (self._begun and runner.iter > 0):
            self.generation = self.updates = 0
            self.distiller.teacher = self.init_teacher(runner, teacher)
            self._starts = True
        # where there is no teacher yet, the first iteration is checked with this one
        self.distiller.trial = None if self.distiller.teacher else teacher
        self._loaded, self._begun = None, True
        self.distiller.attach()
        self._forwards = self.distiller.forwards

    def init_teacher(self, runner: Runner, teacher: nn.Module) -> nn.Module | None:
        """Return the first teacher, of a copy of the student, or None if it is late."""
        raise NotImplementedError

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Tell the distiller the position in [0, 1] on which schedules depend."""
        assert self.distiller is not None
        self._hide_teacher()
        if self._starts:
            # other hooks have filled them since, as MMPretrain's does with margins
            teacher: Any = self.distiller.teacher or self.distiller.trial
            put_buffers(teacher, {}, unsaved_buffers(self.distiller.student))
            self._starts = False
        progress = progress_of(runner, batch_idx)
        self.distiller.progress = self.distiller.run_progress = progress
        self.distiller.seed = runner.seed or 0
        self.distiller.iteration = runner.iter

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """See that the model's loss goes through its ``forward``."""
        assert self.distiller is not None
        tidy_scalars(runner, outputs)
        check_called(self.distiller, since=self._forwards)
        self._forwards = self.distiller.forwards

    def after_train(self, runner: Runner) -> None:
        """Leave the student as it was, and say so if nothing was distilled."""
        if self.distiller is None:
            return
        self.distiller.detach()
        if self.distiller.unlabeled:
            self.distiller.unlabeled.batches.close()
        wanted = any(map(self.distiller.whole_weight, self.distiller.terms))
        # a run that was resumed may have computed some before
        computed = self._resumed or self.distiller.computed
        if wanted and self.distiller.forwards and not computed:
            runner.logger.warning(
                'self_distill: no term was computed in this run: it ended before its '
                'first teacher, or before a schedule began.'
            )

    def before_val_epoch(self, runner: Runner) -> None:
        """Validate the teacher too, or let it predict, if it alone is validated."""
        self._hide_teacher()
        self._of_teacher = {}
        distiller = self.distiller
        if self.validate == 'student' or distiller is None or distiller.teacher is None:
            return
        if self.validate == 'teacher':
            self._evaluated = Evaluated(distiller)
        else:
            # first, so that the files that an evaluator writes end up the student's
            self._of_teacher = of_teacher(validate(runner, distiller))

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Name the teacher's metrics, or add them to the student's."""
        if self.distiller is not None:
            # other hooks swap weights for it, in a way that PyTorch does not count
            self.distiller.prove_again()
        found = {} if metrics is None else metrics
        if self._evaluated is not None:
            self._hide_teacher()
            renamed = of_teacher(found)
            found.clear()
            found.update(renamed)
        found.update(self._of_teacher)
        drop_other_side(runner, found)

    def before_test_epoch(self, runner: Runner) -> None:
        """Test the student."""
        self._hide_teacher()

    def _hide_teacher(self) -> None:
        # a validation that failed leaves it
        if self._evaluated is not None:
            self._evaluated.end()
            self._evaluated = None

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add our state under one key; the student's own keys stay as they are."""
        if self.distiller is not None:
            counts = dict(generation=self.generation, updates=self.updates)
            state = state_of(self.distiller)
            checkpoint[STATE_KEY] = {**self.identity(), **counts, **state}

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a run is resumed, besides the terms."""
        return dict(version=STATE_VERSION, hook=type(self).__name__)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep our state until the teacher is built, for a run that is resumed."""
        # not one that a test loads, or that is loaded during the run
        begins = self.distiller is not None and not self._begun
        resumes = runner._resume and begins
        self._loaded = loaded_part(checkpoint, resumes)
        if resumes and self.distiller is not None:
            # before the optimizer is loaded, which would not say what is wrong
            check_same_run(self.distiller, self._loaded[STATE_KEY], self.identity())

    def _restore(self, state: dict[str, Any], teacher: nn.Module) -> None:
        assert self.distiller is not None
        restore(self.distiller, state, self.identity(), teacher)
        self.generation, self.updates = state['generation'], state['updates']
