"""What is asked of a Runner: model, seed and progress."""

from __future__ import annotations

from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def seed_of_all_ranks(runner: Runner) -> int:
    """Return the run's seed, of rank 0 where each rank has its own."""
    own = runner._randomness_cfg.get('diff_rank_seed', False)
    return (runner.seed or 0) - (get_rank() if own else 0)


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
