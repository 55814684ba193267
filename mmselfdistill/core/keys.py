"""The keys of the terms in the loss dict: no two may be the same."""

from __future__ import annotations

from typing import Iterable

# how the key of a term begins, and those of what is only logged of it
LOSS = 'loss_sd_'
LOGGED = 'sd_'
UNLABELED = '_unlabeled'
# what is logged besides
TASK_WEIGHT = 'sd_task_weight'
SKIPPED = 'sd_unlabeled_skipped'


def keys_of(name: str, suffix: str = '') -> tuple[str, str, str]:
    """Return the keys of a term's loss, of its value without weight, and of its weight.

    Args:
        name (str): The term's.
        suffix (str): Defaults to '': on images with labels.
    """
    # MMEngine sums every key that holds "loss"
    plain = f'{LOGGED}{name.replace("loss", "term")}{suffix}'
    return f'{LOSS}{name}{suffix}', plain, f'{plain}_weight'


def is_ours(key: str) -> bool:
    """Say whether a key of a loss dict was added by distillation."""
    return key.startswith((LOSS, LOGGED))


def check_keys(names: Iterable[str]) -> None:
    """See that no term replaces another in the loss dict, and in the log.

    Raises:
        ValueError: If one does.
    """
    owners = {TASK_WEIGHT: 'task_weight', SKIPPED: 'unlabeled'}
    for name in names:
        for suffix in ('', UNLABELED):
            for key in keys_of(name, suffix):
                owner = owners.setdefault(key, f'terms.{name}')
                if owner != f'terms.{name}':
                    raise ValueError(
                        f'terms.{name}: it has the key {key!r} in the loss dict, and '
                        f'so has {owner}; give the term another name'
                    )
