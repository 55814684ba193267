"""Classifiers of whole images, and embeddings of persons."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from mmselfdistill.replay import tensors_in

from .family import Family, Pair, Reader, Replayed


class Classifier(Family):
    """A model whose ``head`` gives an image the scores of its classes.

    MMPretrain's ``ImageClassifier``, and mmdet's ReID models, which keep their
    classifier for training only.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   of the neck or backbone: (N, C) or (N, C, H, W): PKD
    logits     (N, C) of each output of the head: KL, and binary KL over the
               teacher's positives of heads that give an image several labels
    ========== ================================================================
    """

    name = 'classifier'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head: Any = model.head
        self.seam = str(_classifier(model))

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has such a ``head``."""
        return super().matches(model) and _classifier(model) is not None

    def seams(self) -> list[str]:
        """Return features, head and classifier."""
        # a ReID head calls both itself, after its own forward
        steps = ['head.bn.forward'] if hasattr(self.head, 'bn') else []
        return list(dict.fromkeys([*super().seams(), *steps, self.seam]))

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a classifier."""
        return {**super().readers(), 'logits': self._read_logits}

    def _has_several_labels(self) -> bool:
        # the loss, or what it smooths the labels for
        loss = getattr(self.head, 'loss_module', None)
        losses = (loss, getattr(loss, 'ce', None))
        sigmoid = any(getattr(each, 'use_sigmoid', False) for each in losses)
        # MMPretrain's heads of several labels choose them by a threshold
        return sigmoid or hasattr(self.head, 'thr')

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        context = dict(activation='softmax')
        if self._has_several_labels():
            context = dict(activation='sigmoid', average_over='positives')
        return [
            Pair('logits', student, teacher, context)
            for ours, theirs in replayed.of(self.seam)
            for student, teacher in zip(
                tensors_in(ours.output), tensors_in(theirs.output)
            )
        ]


def _classifier(model: nn.Module) -> str | None:
    head: Any = getattr(model, 'head', None)
    if hasattr(head, 'pre_logits'):
        # MMPretrain's heads return their scores
        return 'head.forward'
    linear = isinstance(getattr(head, 'classifier', None), nn.Linear)
    return 'head.classifier.forward' if linear else None
