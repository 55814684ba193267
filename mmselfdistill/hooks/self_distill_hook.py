"""A fixed teacher from a checkpoint."""

from __future__ import annotations

import re
from typing import Any, Mapping

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import Tensor

from mmselfdistill.teacher import broadcast_from_rank_0, mismatches, tensors_of
from mmselfdistill.terms import ScheduleConfig, TermConfigs

from .base import DistillHook


@HOOKS.register_module()
class SelfDistillHook(DistillHook):
    """Distils from a trained checkpoint of the same model: a frozen twin.

    A resumed run takes the teacher from its own checkpoint and no longer needs
    the file.

    Args:
        teacher (str): Path or URL of a checkpoint of the same model, of any
            form that MMEngine loads. It is loaded strictly.
        terms (dict, optional): See :class:`DistillHook`. Defaults to None.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.
        schedule (dict | str, optional): Weight over the run. Defaults to None:
            a cosine from 1 to 0.01.

    Raises:
        ValueError: If a value is wrong, or the teacher is missing, broken or of
            another model.
    """

    default_schedule = 'cosine'

    def __init__(
        self,
        teacher: str,
        terms: TermConfigs | None = None,
        loss_weight: float = 1.0,
        schedule: ScheduleConfig = None,
        **unknown: Any,
    ) -> None:
        super().__init__(terms, loss_weight, schedule, **unknown)
        if not isinstance(teacher, str) or not teacher:
            raise ValueError(f'teacher: expected a path or URL, but got {teacher!r}')
        self.teacher = teacher

    def init_teacher(self, runner: Runner) -> None:
        """Load the checkpoint."""
        assert self.distiller is not None and self._teacher is not None
        state = load_weights(self.teacher)
        wrong = mismatches(self._teacher.state_dict(), state)
        if wrong:
            raise ValueError(
                f'teacher: {self.teacher} is of another model than this '
                f'{type(self._teacher).__name__}:\n  ' + '\n  '.join(wrong)
            )
        self._teacher.load_state_dict(state, strict=True)
        broadcast_from_rank_0(tensors_of(self._teacher).values())
        self.distiller.teacher = self._teacher
        runner.logger.info(f'The teacher is {self.teacher}.')


def load_weights(path: str) -> dict[str, Tensor]:
    """Load a model's weights from a checkpoint file.

    Raises:
        ValueError: If there is no such file, or it holds no weights.
    """
    try:
        checkpoint: Any = _load_checkpoint(path, map_location='cpu')
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'teacher: cannot load {path!r}: {reason}') from error
    is_dict = isinstance(checkpoint, Mapping)
    state = checkpoint.get('state_dict', checkpoint) if is_dict else checkpoint
    if not _is_state_dict(state):
        raise ValueError(f'teacher: {path!r} holds no state_dict of a model')
    # written by a script that saved the DDP wrapper
    return {re.sub(r'^module\.', '', key): value for key, value in state.items()}


def _is_state_dict(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and len(state) > 0
        and all(isinstance(key, str) for key in state)
        and all(isinstance(value, Tensor) for value in state.values())
    )
