"""Models of which only the features are known, or only the parts."""

from __future__ import annotations

from torch import nn

from .plan import Family, Plan
from .shared import feature_seam, features, head_seams, seams, unread_heads


class AnyModel(Family):
    """Any model with an ``extract_feat`` or a ``backbone``: ``features``, by PKD."""

    name = 'any model with a backbone'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model makes features."""
        return bool(feature_seam(model))

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Return the features, and the heads for modules that are named by path."""
        paths = seams(feature_seam(model), *head_seams(model))
        return Plan(cls.name, paths, (features(model),), skipped=unread_heads(model))


class Unknown(Family):
    """A model of which only modules can be named, by their path.

    The teacher repeats the calls of the model's direct parts.
    """

    name = 'unknown model'

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Return the ``forward`` of each direct part, and no site."""
        return Plan(
            cls.name, seams(*(f'{name}.forward' for name, _ in model.named_children()))
        )
