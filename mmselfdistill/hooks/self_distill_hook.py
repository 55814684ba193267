"""A fixed teacher from a checkpoint."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import OrderedDict
from typing import Any, Mapping

from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import Tensor, nn

from mmselfdistill.compat import why_unreadable
from mmselfdistill.core.teacher import broadcast_from_rank_0, mismatches, tensors_of

from .base import DistillHook
from .run import metainfo_of
from .state import STATE_KEY


@HOOKS.register_module()
class SelfDistillHook(DistillHook):
    """Distils from a trained checkpoint of the same model: a frozen twin.

    A resumed run takes the teacher from its own checkpoint and no longer needs
    the file.

    Args:
        teacher (str): Path or URL of a checkpoint of the same model, of any
            form that MMEngine loads. It is loaded strictly, as the model itself does:
            old names are translated where the model knows how. Of a model that holds
            the detector that it trains, a checkpoint of that detector will do.
        **shared: What all hooks take: see :class:`DistillHook`. The schedule's default
            is a cosine from 1 to 0.01 over the run.

    Raises:
        ValueError: If a value is wrong, or the teacher is missing, broken or of
            another model.
    """

    default_schedule = 'cosine'

    def __init__(self, teacher: str | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        if not isinstance(teacher, str) or not teacher:
            raise ValueError(
                f'teacher: expected a path or URL, as text, but got {teacher!r}'
            )
        self.teacher = os.path.expanduser(teacher)
        # where the teacher of this run comes from: of a resumed one, that of the first
        self._source = self.teacher

    def init_teacher(self, runner: Runner, teacher: nn.Module) -> nn.Module:
        """Load the checkpoint."""
        self._source = self.teacher
        assert self.distiller is not None
        inner = self.distiller.labeled.plan.inner
        part, classes = load_strictly(teacher, self.teacher, inner)
        broadcast_from_rank_0(tensors_of(teacher).values())
        of = f', of its {part}' if part else ''
        runner.logger.info(f'The teacher{of} is {self.teacher}.')
        dataset: Any = runner.train_loop.dataloader.dataset
        other = other_classes(classes, metainfo_of(dataset).get('classes'))
        if other:
            runner.logger.warning(f'teacher: {self.teacher}: {other}')
        return teacher

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add where the teacher comes from."""
        super().before_save_checkpoint(runner, checkpoint)
        if STATE_KEY in checkpoint:
            checkpoint[STATE_KEY]['source'] = self._source

    def _restore(self, state: dict[str, Any], teacher: nn.Module) -> None:
        super()._restore(state, teacher)
        self._source = state['source']
        said = f'The teacher is that of the checkpoint, {self._source}.'
        # one file may be spelt in several ways, and two URLs stay two
        other = os.path.realpath(self._source) != os.path.realpath(self.teacher)
        if other:
            said += (
                f' The config names another one, {self.teacher}, which is not used: to '
                'be taught by it, begin a run of its own'
            )
        print_log(said, 'current', logging.WARNING if other else logging.INFO)


def load_strictly(teacher: nn.Module, path: str, inner: str) -> tuple[str, list[str]]:
    """Load a checkpoint into a teacher, or into the model that it holds.

    Args:
        teacher (nn.Module): The teacher.
        path (str): Path or URL of the checkpoint.
        inner (str): Path of the model inside that is trained, or ''.

    Returns:
        tuple: What was loaded, '' for all of it or ``inner``; and the classes that the
        file names.

    Raises:
        ValueError: If it does not fit, or a weight is not finite.
    """
    state, classes = load_weights(path)
    # a buffer may be a mask of -inf
    weights = {name for name, _ in teacher.named_parameters()}
    prefix = f'{inner}.' if inner else ''
    broken = [
        key
        for key, value in state.items()
        if _has_nan(value)
        or (
            (key in weights or prefix + key in weights or '.running_' in key)
            and not value.isfinite().all()
        )
    ]
    if broken:
        raise ValueError(
            f'teacher: {path} has NaN or infinity in {len(broken)} of {len(state)} '
            f'tensors, {broken[0]!r} the first: its training went wrong; give an '
            'earlier one'
        )
    try:
        teacher.load_state_dict(state, strict=True)
        return '', classes
    except RuntimeError as error:
        reason = error
    if inner:
        try:
            teacher.get_submodule(inner).load_state_dict(state, strict=True)
            return inner, classes
        except RuntimeError:
            pass
    wrong = mismatches(teacher.state_dict(), state) or [str(reason)]
    if len(wrong) == 1 and wrong[0].startswith('unexpected'):
        wrong.append(
            'A buffer that the model makes in its first forward is unexpected too: '
            'register it in __init__'
        )
    raise ValueError(
        f'teacher: {path} is of another model than this {type(teacher).__name__}:\n  '
        + '\n  '.join(wrong)
    ) from reason


def other_classes(theirs: list[str], ours: Any) -> str:
    """Say where the classes of a teacher and a run differ, '' if nowhere known.

    A data set that numbers classes by its annotation file, as COCO's, may list them in
    any order: so it is no error.
    """
    if not theirs or not isinstance(ours, (list, tuple)) or theirs == [*ours]:
        return ''
    pairs = itertools.zip_longest(theirs, ours)
    at = next(i for i, (their, our) in enumerate(pairs) if their != our)
    return (
        f'its classes are not those of this run. From number {at} on they are '
        f'{theirs[at : at + 3]} there, and {[*ours[at : at + 3]]} here. A class '
        'that has another number there is taught as another one.'
    )


def load_weights(path: str) -> tuple[dict[str, Tensor], list[str]]:
    """Load a model's weights from a checkpoint file, and its classes, if it has them.

    Raises:
        ValueError: If there is no such file, or it holds no weights.
    """
    try:
        checkpoint: Any = _load_checkpoint(path, map_location='cpu')
    except Exception as error:
        reason = why_unreadable(path, error)
        raise ValueError(f'teacher: cannot load {path!r}: {reason}') from error
    is_dict = isinstance(checkpoint, Mapping)
    state = checkpoint.get('state_dict', checkpoint) if is_dict else checkpoint
    if not _is_state_dict(state):
        raise ValueError(f'teacher: {path!r} holds no state_dict of a model')
    names = _classes_of(checkpoint)
    if not all(key.startswith('module.') for key in state):
        return state, names
    # written by a script that saved the DDP wrapper
    weights: Any = OrderedDict((_bare(key), value) for key, value in state.items())
    versions = getattr(state, '_metadata', None)
    if versions is not None:
        # by these a module translates what older versions of it have saved
        weights._metadata = OrderedDict((_bare(k), v) for k, v in versions.items())
    return weights, names


def _classes_of(checkpoint: Any) -> list[str]:
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    # older versions have them in capitals, or in the meta itself
    for place in (meta.get('dataset_meta'), meta):
        for key in ('classes', 'CLASSES'):
            found = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(found, (list, tuple)):
                return [*found]
    return []


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _bare(key: str) -> str:
    return re.sub(r'^module(\.|$)', '', key)


def _is_state_dict(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and len(state) > 0
        and all(isinstance(key, str) for key in state)
        and all(isinstance(value, Tensor) for value in state.values())
    )
