"""Whether the terms are a part of what a model minimises."""

from __future__ import annotations

from functools import partial
from typing import Any, Mapping

import torch
from torch import Tensor

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.keys import LOSS

# how many iterations may leave out losses of the model too, as if by turns
TURNS = 10


class Minimised:
    """Sees by the first backward passes whether they reach the loss of each term.

    A model may choose losses by their names in its ``train_step`` or ``parse_losses``.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Look at the next iteration as the first."""
        self._reached: set[str] = set()
        self._waiting: set[str] = set()
        self._own = 0
        self._own_reached: set[int] = set()
        self._turns = 0

    def watched(self, own: Any, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of an iteration, with a gradient also where they are 0.

        Args:
            own (dict): The losses of the model itself.
            added (Mapping[str, Tensor]): The terms, as losses and for the log.
        """
        found = dict(added)
        new = {name for name in found if name.startswith(LOSS)} - self._reached
        if not new or not torch.is_grad_enabled():
            return found
        losses = [loss for loss in tensors_in(own) if loss.requires_grad]
        if not losses:
            # what has no gradient is not minimised: nothing can be seen
            return found
        self._waiting, self._own, self._own_reached = new, len(losses), set()
        for name in new:
            value = found[name]
            if not value.requires_grad:
                # 0 at present: the term begins later
                value = value + torch.zeros_like(value).requires_grad_()
            _watch(value, self._reached, name)
            found[name] = value
        for number, loss in enumerate(losses):
            _watch(loss, self._own_reached, number)
        return found

    def left_out(self) -> list[str]:
        """Return the losses that the last backward pass should have reached.

        A model may minimise its losses by turns, so a pass that did not reach all of
        these says nothing, unless that is so in each of the first iterations.
        """
        left = sorted(self._waiting - self._reached)
        self._waiting = set()
        if not left or not self._own_reached:
            return []
        self._turns += 1
        every = len(self._own_reached) == self._own or self._turns >= TURNS
        return left if every else []


def _watch(value: Tensor, reached: set[Any], name: str | int) -> None:
    """Add a name to a set once a gradient reaches a tensor."""
    value.register_hook(partial(_note, reached, name))  # type: ignore[no-untyped-call]


def _note(reached: set[Any], name: str | int, gradient: Tensor | None) -> None:
    # DDP calls the hooks of what it has not seen in the pass too, without a gradient
    if gradient is not None:
        reached.add(name)
