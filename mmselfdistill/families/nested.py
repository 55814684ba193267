"""Models that train another one inside."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .plan import Family, Plan
from .shared import unread_heads


class Nested(Family):
    """A model that is trained through a detector that it holds.

    The student of semi-supervised training, whose own teacher makes labels, and
    the detector of a tracker. Everything is that detector's, under its path.
    """

    name = 'nested detector'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model holds the one that it trains."""
        return bool(_inner(model))

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Return the inner model's plan, and the heads around it as skipped."""
        from . import find_plan

        path = _inner(model)
        plan = find_plan(model.get_submodule(path)).under(path)
        why = 'embeddings: only their differences within a batch mean something'
        around = dict.fromkeys(unread_heads(model), why)
        return replace(plan, skipped={**plan.skipped, **around})


def _inner(model: nn.Module) -> str:
    for name in ('student', 'detector'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module) and hasattr(part, 'extract_feat'):
            return name
    return ''
