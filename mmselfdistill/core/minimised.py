"""Whether the terms are a part of what a model minimises."""

from __future__ import annotations

from functools import partial
from typing import Any, Mapping

import torch
from torch import Tensor

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.keys import LOSS


class Minimised:
    """Sees by the first backward pass whether it reaches the loss of each term.

    A model may choose losses by their names in its ``train_step`` or ``parse_losses``.
    """

    def __init__(self) -> None:
        self._reached: set[str] = set()
        self._waiting: set[str] = set()
        self._any = False

    def forget(self) -> None:
        """Look at the next iteration as the first."""
        self._reached, self._waiting = set(), set()

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
        self._waiting, self._any = new, False
        for name in new:
            value = found[name]
            if not value.requires_grad:
                # 0 at present: the term begins later
                value = value + torch.zeros_like(value).requires_grad_()
            value.register_hook(partial(self._note, name))  # type: ignore[no-untyped-call]
            found[name] = value
        for loss in tensors_in(own):
            if loss.requires_grad:
                loss.register_hook(self._see)  # type: ignore[no-untyped-call]
        return found

    def left_out(self) -> list[str]:
        """Return the losses that no gradient has reached, if there was any gradient."""
        left = sorted(self._waiting - self._reached) if self._any else []
        self._waiting = set()
        return left

    def _note(self, name: str, _: Tensor) -> None:
        self._reached.add(name)

    def _see(self, _: Tensor) -> None:
        self._any = True
