"""Generation after generation, each taught by the one before."""

from __future__ import annotations

from typing import Any

from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmselfdistill.core.teacher import copy_into, make_teacher
from mmselfdistill.errors import check_bool, check_choice, check_whole

from .base import DistillHook
from .learned import losses_of
from .restart import Beginning, reinitialize, try_fresh_model
from .run import bare_model, epochs_done, iterations_done
from .state import STATE_KEY

# RTMDet's, YOLOX's and DeiT III's changes, by name: their packages may be absent
_SWITCHES = {'PipelineSwitchHook', 'YOLOXModeSwitchHook', 'SwitchRecipeHook'}


@HOOKS.register_module()
class GenerationHook(DistillHook):
    """Copies the student into a frozen teacher at each boundary of generations.

    The first generation trains alone. Give either ``interval`` or
    ``generations``:

    - ``interval``: the run has the length that the config gives it, and is cut into
      generations. The learning rate goes on as the config says; with
      ``student='reinit'`` it restarts in each, and never comes to the end of its
      schedule: prefer ``generations`` there.
    - ``generations``: the run becomes that many times the config's length, and
      the schedules of learning rate and momentum restart in each.

    What a boundary does to the student:

    ============  ========================  =================  ================
    ``student``   weights                   optimizer state    schedules
    ============  ========================  =================  ================
    continue      stay                      stays              go on; restart by
                                                               generations
    reinit        fresh (seed +             emptied            restart
                  generation)
    ============  ========================  =================  ================

    Re-initialised generations are those of Born-Again Networks (arXiv
    1805.04770).

    Args:
        interval (int, optional): Length of a generation, in epochs or
            iterations. Defaults to None.
        generations (int, optional): Number of generations. Defaults to None.
        by_epoch (bool): Whether ``interval`` counts epochs; ``generations`` does not
            ask. Defaults to True.
        student (str): 'continue' or 'reinit'. Defaults to 'continue'.
        **shared: What all hooks take: see :class:`DistillHook`. The schedule's default
            is a cosine from 1 to 0.01 over each generation.

    Raises:
        ValueError: If a value is wrong. Before training also if ``interval`` counts
            epochs and the run does not, or fresh weights cannot be drawn.
    """

    default_schedule = 'cosine'
    late = True

    def __init__(
        self,
        interval: int | None = None,
        generations: int | None = None,
        by_epoch: bool = True,
        student: str = 'continue',
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if (interval is None) == (generations is None):
            raise ValueError(
                'GenerationHook: expected either interval or generations, but got '
                f'interval={interval!r} and generations={generations!r}'
            )
        for name, value in (('interval', interval), ('generations', generations)):
            if value is not None:
                check_whole(name, value, 1)
        self.interval = None if interval is None else int(interval)
        self.generations = generations
        self.by_epoch = check_bool('by_epoch', by_epoch)
        self.student = check_choice('student', student, ('continue', 'reinit'))
        self._beginning: Beginning | None = None
        # the last generation whose teacher is ready
        self._taught = 0
        # iterations, where boundaries are counted in these within epochs
        self._per_epoch: int | None = None

    def set_up(self, runner: Runner) -> None:
        """Lengthen the run, and remember how its schedules begin."""
        loop = runner.train_loop
        epochs = isinstance(loop, EpochBasedTrainLoop)
        if self.generations is None and self.by_epoch and not epochs:
            raise ValueError(
                f'GenerationHook: by_epoch=True, but {type(loop).__name__} counts '
                'iterations; set by_epoch=False and interval in iterations, or give '
                'generations'
            )
        if self.student == 'reinit':
            _check_can_reinitialize(runner)
        super().set_up(runner)
        if self.generations is not None:
            self.by_epoch = epochs
            self.interval = loop.max_epochs if epochs else loop.max_iters
            loop._max_epochs *= self.generations if epochs else 1
            loop._max_iters *= self.generations
        counted = epochs and not self.by_epoch
        self._per_epoch = len(loop.dataloader) if counted else None
        assert self.distiller is not None
        self._beginning = Beginning(runner, losses_of(self.distiller))
        self._warn(runner, loop.max_epochs if self.by_epoch else loop.max_iters)

    def _warn(self, runner: Runner, length: int) -> None:
        assert self.interval is not None
        unit = 'epochs' if self.by_epoch else 'iterations'
        if self.interval >= length:
            runner.logger.warning(
                f'GenerationHook: the first generation, {self.interval} {unit}, fills '
                f'the run of {length}: nothing will be distilled.'
            )
        switches = {type(hook).__name__ for hook in runner.hooks} & _SWITCHES
        if len(getattr(runner.train_loop, 'dynamic_intervals', None) or ()) > 1:
            switches.add('train_cfg.dynamic_intervals')
        if switches and (self.generations or 1) > 1:
            runner.logger.warning(
                f'GenerationHook: {", ".join(sorted(switches))} counts {unit} of the '
                f'whole run ({length}): it acts once, not once in each generation.'
            )

    def identity(self) -> dict[str, Any]:
        """Add what decides where the boundaries are, and what happens there."""
        return dict(
            **super().identity(),
            interval=self.interval,
            by_epoch=self.by_epoch,
            student=self.student,
            restart=self._restarts(),
            iterations_per_epoch=self._per_epoch,
        )

    def _restarts(self) -> bool:
        return self.student == 'reinit' or self.generations is not None

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add how the schedules begin: a resumed run has only seen them later."""
        super().before_save_checkpoint(runner, checkpoint)
        if STATE_KEY in checkpoint and self._beginning is not None:
            checkpoint[STATE_KEY]['beginning'] = self._beginning.state

    def _restore(self, state: dict[str, Any], teacher: nn.Module) -> None:
        super()._restore(state, teacher)
        self._taught = self.generation
        assert self._beginning is not None
        self._beginning.resume(state['beginning'])

    def before_train(self, runner: Runner) -> None:
        """Try what the boundary will do, before a step is made."""
        if self.student == 'reinit':
            try_fresh_model(runner)
        super().before_train(runner)

    def init_teacher(self, runner: Runner, teacher: nn.Module) -> None:
        """Leave the first generation without a teacher."""
        self._taught = 0

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Begin the next generation where it is due; schedules depend on its part."""
        super().before_train_iter(runner, batch_idx, data_batch)
        assert self.distiller is not None and self.interval is not None
        count = epochs_done if self.by_epoch else iterations_done
        generation, part = divmod(count(runner, batch_idx), self.interval)
        if generation < self.generation:
            # it began within the epoch that a resumed run makes again
            part = 0
        elif generation > self.generation:
            self._begin(runner, int(generation))
        self.distiller.progress = part / self.interval

    def _begin(self, runner: Runner, generation: int) -> None:
        assert self.distiller is not None and self._beginning is not None
        student = bare_model(runner)
        if self.distiller.teacher is None:
            with self.distiller.attachment.set_aside():
                self.distiller.teacher = make_teacher(student, self.distiller.acting())
        if self._taught != generation:
            # else a boundary was interrupted, and its student is fresh already
            copy_into(self.distiller.teacher, student)
            self._taught = generation
        self.distiller.prove_again()
        if self.student == 'reinit':
            reinitialize(runner, generation)
            self._beginning.restore_losses(losses_of(self.distiller))
        if self._restarts():
            self._beginning.restore(runner)
        self.generation = generation
        runner.logger.info(
            f'Generation {generation + 1} begins (student: {self.student}): the '
            f'teacher has the weights of iteration {runner.iter}.'
        )


def _check_can_reinitialize(runner: Runner) -> None:
    if not runner.cfg.get('model'):
        raise ValueError(
            "GenerationHook: student='reinit' builds a fresh model from "
            'runner.cfg.model, which is empty; make the runner by Runner.from_cfg'
        )
    # a Runner's own: its config may say less
    if runner._load_from and not runner._resume:
        raise ValueError(
            "GenerationHook: student='reinit' starts each generation from the model's "
            f'own init_cfg, so load_from={runner._load_from!r} would hold for the '
            "first only; use init_cfg=dict(type='Pretrained', ...), or 'continue'"
        )
