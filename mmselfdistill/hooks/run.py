"""What is asked of a Runner: hooks, model, seed, progress, histories, optimizers."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner, get_priority
from torch import nn

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.keys import is_ours

# the longest window by which a scalar of ours can be averaged in the log
HISTORY = 10_000


def check_alone(runner: Runner, kind: type[Hook]) -> None:
    """See that a run has one hook of a kind.

    Raises:
        ValueError: If it has several.
    """
    check_one([type(h).__name__ for h in runner.hooks if isinstance(h, kind)])


def check_one(names: Sequence[str]) -> None:
    """See that there is one hook of this package at most.

    Raises:
        ValueError: If there are several.
    """
    if len(names) > 1:
        raise ValueError(
            f'self_distill: a run has one hook of mmselfdistill, but got {names}; '
            'remove all but one from default_hooks and custom_hooks. One that is '
            'inherited is replaced under its own key, by dict(_delete_=True, type=...)'
        )


def check_priority(hook: Hook) -> None:
    """See that a hook of ours comes before MMEngine's own.

    Raises:
        ValueError: If the config gives it another place.
    """
    if get_priority(hook.priority) >= get_priority('VERY_HIGH'):
        raise ValueError(
            f'self_distill: priority={hook.priority!r} would let other hooks save, log '
            f'and validate before {type(hook).__name__} has done its part; remove it'
        )


def check_loop(runner: Runner) -> None:
    """See that the training loop says how long it is.

    Raises:
        ValueError: If it does not.
    """
    if not hasattr(runner.train_loop, 'max_iters'):
        raise ValueError(
            f'self_distill: {type(runner.train_loop).__name__} has no max_iters: '
            'schedules, and the horizon of an average, depend on how long the run is'
        )


def seed_of_all_ranks(runner: Runner) -> int:
    """Return the run's seed, of rank 0 where each rank has its own."""
    own = runner._randomness_cfg.get('diff_rank_seed', False)
    return (runner.seed or 0) - (get_rank() if own else 0)


def epochs_done(runner: Runner, batch_idx: int) -> float:
    """Return how many epochs are done, the present one by its share of batches.

    Iterations do not tell: a resumed run may have another batch size.
    """
    return float(runner.epoch + batch_idx / len(runner.train_loop.dataloader))


def progress_of(runner: Runner, batch_idx: int) -> float:
    """Return the position in the run, in [0, 1]."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return epochs_done(runner, batch_idx) / float(runner.max_epochs)
    return float(runner.iter / runner.max_iters)


def iterations_done(runner: Runner, batch_idx: int) -> int:
    """Return how many iterations are done, each once.

    A run that is resumed within an epoch makes that epoch again, and ``runner.iter``
    counts on.
    """
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        return int(runner.epoch * len(loop.dataloader) + batch_idx)
    return int(runner.iter)


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


def check_called(distiller: Distiller, since: int) -> None:
    """See that the student's loss went through its extended ``forward``, and is used.

    Args:
        distiller (Distiller): After an iteration.
        since (int): How often it had computed the loss before that.

    Raises:
        RuntimeError: If it did not, or a term is no part of what is minimised: nothing
            would be distilled.
    """
    name = type(distiller.student).__name__
    if distiller.forwards == 0:
        raise RuntimeError(
            f"self_distill: {name} was not called with mode='loss' in the first "
            'iteration: its train_step computes the loss in another way, and '
            'nothing would be distilled'
        )
    if distiller.forwards == since and not distiller.attachment.is_outermost:
        raise RuntimeError(
            f'self_distill: the forward of {name} was replaced during the run, and '
            'nothing would be distilled any more. Replace it before training begins'
        )
    left_out = distiller.minimised.left_out()
    if left_out:
        raise RuntimeError(
            f'self_distill: {name} does not minimise {", ".join(left_out)}: no '
            'gradient has reached them. Its train_step or parse_losses chooses losses '
            "by their names; it has to add all of those with 'loss' in their names"
        )


def tidy_scalars(runner: Runner, made: Mapping[str, Any] | None) -> None:
    """Keep the last values alone of what the terms log, and none that is not made.

    MMEngine keeps a million of each scalar, copies them in each iteration, and writes
    them into every checkpoint. In a resumed run it logs again and again what the
    checkpoint holds.

    Args:
        runner (Runner): The run.
        made (Mapping, optional): What an iteration gives the log. None: not known.
    """
    scalars = runner.message_hub.log_scalars
    for key in [*scalars]:
        kind, _, name = key.partition('/')
        if kind == 'train' and is_ours(name):
            if made is not None and name not in made:
                del scalars[key]
            else:
                scalars[key].max_length = HISTORY


def metainfo_of(dataset: Any) -> Mapping[str, Any]:
    """Return what a dataset says of its classes; of several, what the first does."""
    found = getattr(dataset, 'metainfo', None)
    if isinstance(found, (list, tuple)):
        found = found[0] if found else None
    return found if isinstance(found, Mapping) else {}


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers, of which there are several for few models."""
    wrapper = runner.optim_wrapper
    several = isinstance(wrapper, OptimWrapperDict)
    return list(wrapper.values()) if several else [wrapper]


def schedulers_of(runner: Runner) -> dict[str, Any]:
    """Return the schedulers of a run by optimizer and number, as 'encoder.0'.

    Of a run with one optimizer, the name of that is ''.
    """
    schedulers = runner.param_schedulers or []
    groups = schedulers if isinstance(schedulers, dict) else {'': schedulers}
    return {
        f'{name}.{number}': scheduler
        for name, group in groups.items()
        for number, scheduler in enumerate(group)
    }


def optimizer_steps(runner: Runner) -> float:
    """Return how many steps the optimizer makes in the run, of several the quickest."""
    counts = [wrapper._accumulative_counts for wrapper in optim_wrappers(runner)]
    return float(runner.max_iters / min(counts))
