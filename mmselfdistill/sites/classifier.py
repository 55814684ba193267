"""Classifiers of whole images, and embeddings of persons."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from .family import Family, Pair, Reader, Replayed


class Classifier(Family):
    """A model with a ``head`` whose last layer is a linear classifier.

    MMPretrain's ``ImageClassifier`` and mmdet's ReID models, which keep their
    classifier for training only. Sites: ``features`` (of backbone or neck),
    ``logits`` ((N, C): KL).
    """

    name = 'classifier'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seam = str(_classifier(model))

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has such a ``head``."""
        return super().matches(model) and _classifier(model) is not None

    def seams(self) -> list[str]:
        """Return features, head and classifier."""
        # a ReID head calls both itself, after its own forward
        steps = ['head.bn.forward'] if hasattr(self.model.head, 'bn') else []
        return [*super().seams(), *steps, self.seam]

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a classifier."""
        return {**super().readers(), 'logits': self._read_logits}

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        return [
            Pair('logits', ours.output, theirs.output, dict(activation='softmax'))
            for ours, theirs in replayed.of(self.seam)
        ]


def _classifier(model: nn.Module) -> str | None:
    head: Any = getattr(model, 'head', None)
    for name in ('classifier', 'fc'):
        if isinstance(getattr(head, name, None), nn.Linear):
            return f'head.{name}.forward'
    return None
