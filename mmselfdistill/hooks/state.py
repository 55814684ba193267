"""What a checkpoint holds of a distiller, and how it is put back."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import mismatches
from mmselfdistill.core.terms import differences

from .buffers import put_buffers, unsaved_buffers
from .learned import losses_of

STATE_KEY = 'mmselfdistill'
STATE_VERSION = 1
_PARTS = {
    *('generation', 'updates', 'teacher', 'buffers', 'losses', 'terms'),
    *('trained', 'unlabeled', 'skipped'),
}
# what a user did not write under this name
_NAMES = dict(
    interval='interval (with generations: the length that the config gives)',
    restart="restart (by generations, or student='reinit')",
    trained='terms whose losses have parameters, which the optimizer trains',
)


def state_of(distiller: Distiller) -> dict[str, Any]:
    """Return teacher, losses and terms as plain tensors, numbers and lists."""
    teacher, unlabeled = distiller.teacher, distiller.unlabeled
    buffers = {} if teacher is None else unsaved_buffers(teacher)
    return dict(
        teacher=None if teacher is None else weights_to_cpu(teacher.state_dict()),
        buffers={name: buffer.cpu() for name, buffer in buffers.items()},
        losses={
            name: weights_to_cpu(loss.state_dict())
            for name, loss in losses_of(distiller).items()
        },
        terms={term.name: term.config for term in distiller.terms},
        trained=distiller.trained,
        unlabeled=0 if unlabeled is None else unlabeled.used,
        skipped=0 if unlabeled is None else unlabeled.skipped,
    )


def loaded_part(checkpoint: dict[str, Any], resumes: bool) -> dict[str, Any]:
    """Return what a run may need of a checkpoint that it loads, the weights left out.

    Args:
        checkpoint (dict): What was loaded.
        resumes (bool): Whether it is to go on from it.

    Raises:
        ValueError: If it is, and there is no state of ours.
    """
    if resumes:
        read_state(checkpoint)
    return {key: checkpoint[key] for key in ('meta', STATE_KEY) if key in checkpoint}


def resumed_state(
    runner: Runner, loaded: dict[str, Any] | None, begun: bool
) -> dict[str, Any] | None:
    """Return our state if the run goes on where this was saved, or None.

    ``Runner.resume`` sets no flag: it moves the loop, once the file is loaded. A flag
    of the run's own is about its beginning alone.

    Raises:
        ValueError: If it goes on there, and there is no state of ours.
    """
    if loaded is None:
        return None
    at = (loaded.get('meta') or {}).get('iter')
    flag = runner._resume and not begun
    resumes = flag or (runner.iter > 0 and runner.iter == at)
    return read_state(loaded) if resumes else None


def read_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return our state of a checkpoint.

    Raises:
        ValueError: If there is none, or it is broken.
    """
    if STATE_KEY not in checkpoint:
        raise ValueError(
            'resume: the checkpoint holds no state of mmselfdistill, it was '
            'written without this hook. To begin self-distillation from its '
            'weights, use load_from without resume'
        )
    state = checkpoint[STATE_KEY]
    if not isinstance(state, dict) or _PARTS - state.keys():
        raise ValueError(
            f'resume: the state under {STATE_KEY!r} in the checkpoint is broken: '
            f'expected a dict with {sorted(_PARTS)}'
        )
    return state


def _of_labels(terms: dict[str, Any]) -> dict[str, Any]:
    return {name: cfg for name, cfg in terms.items() if cfg.get('on') != 'unlabeled'}


def check_same_run(
    distiller: Distiller,
    state: dict[str, Any],
    identity: dict[str, Any],
    teacher: nn.Module | None = None,
) -> None:
    """See that a state is of this run.

    Args:
        distiller (Distiller): Of this run.
        state (dict): What the checkpoint holds.
        identity (dict): What has to be the same, besides the terms.
        teacher (nn.Module, optional): What is to have the teacher's weights. Defaults
            to None: it is not built yet.

    Raises:
        ValueError: If it is of another run.
    """
    identity = {**identity, 'trained': distiller.trained}
    wrong = [
        f'{_NAMES.get(key, key)}: {state.get(key)!r} in the checkpoint, {value!r} now'
        for key, value in identity.items()
        if state.get(key) != value
    ]
    terms = {term.name: term.config for term in distiller.terms}
    saved = state['terms']
    if distiller.unlabeled is None or not state['unlabeled']:
        # images without labels may be added or left out, as loss_weight may change
        terms, saved = _of_labels(terms), _of_labels(saved)
    wrong += differences(terms, saved)
    if teacher is not None and state['teacher'] is not None:
        put_buffers(teacher, state['teacher'], state['buffers'])
        differing = mismatches(teacher.state_dict(), state['teacher'])
        wrong += [f'teacher: {each}' for each in differing]
    if wrong:
        raise ValueError(
            'resume: the run in the checkpoint was another one:\n  '
            + '\n  '.join(wrong)
        )


def restore(
    distiller: Distiller,
    state: dict[str, Any],
    identity: dict[str, Any],
    teacher: nn.Module,
) -> None:
    """Put a state back, or change nothing.

    Args:
        distiller (Distiller): Is given the teacher.
        state (dict): What the checkpoint holds.
        identity (dict): What has to be the same, besides the terms.
        teacher (nn.Module): Is given the teacher's weights.

    Raises:
        ValueError: If it is of another run.
    """
    check_same_run(distiller, state, identity, teacher)
    if distiller.unlabeled is not None:
        # the first process's: the others may have skipped other numbers
        distiller.unlabeled.skipped = state['skipped']
        distiller.unlabeled.used = state['unlabeled']
    losses = losses_of(distiller)
    for name, weights in state['losses'].items():
        if name in losses:  # else it was for images without labels, now left out
            losses[name].load_state_dict(weights, strict=True)
    distiller.teacher = None
    if state['teacher'] is not None:
        teacher.load_state_dict(state['teacher'], strict=True)
        distiller.teacher = teacher
