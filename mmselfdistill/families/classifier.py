"""Classifiers of whole images, and embeddings of persons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from mmselfdistill.containers import tensors_in

from .plan import Family, Plan, Reading, Rows, Side, Site
from .shared import feature_seam, features, head_seams, over_objects, seams

# ArcFace: its head subtracts a margin from the score of the label
_COSINES = 'head.norm_product.forward'


class Classifier(Family):
    """A model whose ``head`` gives an image the scores of its classes.

    MMPretrain's ``ImageClassifier``, and mmdet's ReID models, which keep their
    classifier for training only.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   of the neck or backbone: (N, C) or (N, C, H, W): PKD
    logits     (N, C) of each output of the head: KL, and binary KL over the
               teacher's positives of heads that give an image several labels; of
               ArcFace the scaled cosines, without the margin of the label
    ========== ================================================================
    """

    name = 'classifier'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model has such a ``head``."""
        return bool(feature_seam(model)) and bool(_classifier(model))

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features, head and classifier are recorded and read."""
        head: Any = model.get_submodule('head')
        seam = _classifier(model)
        # a ReID head calls both itself, after its own forward
        steps = ['head.bn.forward'] if hasattr(head, 'bn') else []

        def read(side: Side) -> list[Reading]:
            found = [x for call in side.of(seam) for x in tensors_in(call.output)]
            # a hook may exchange the loss during the run
            kind = 'sigmoid' if _has_several_labels(head) else 'softmax'
            scale = head.scale if seam == _COSINES else 1
            return [Reading(scale * logits, kind) for logits in found]

        def weigh(side: Side) -> list[Rows]:
            if _has_several_labels(head):
                return over_objects(read)(side)
            return [Rows()] * len(read(side))

        default = dict(type='SoftTargetLoss', weight=1.0)
        logits = Site('logits', (seam,), read, weigh, default)
        paths = seams(feature_seam(model), *head_seams(model), *steps, seam)
        maps = features(model)
        if next(head.parameters(), None) is None:
            # the last layer of the backbone: they are the logits (AlexNet, VGG)
            maps = replace(maps, default=None)
        return Plan(cls.name, paths, (maps, logits))


def _has_several_labels(head: Any) -> bool:
    # the loss, or what it smooths the labels for
    loss = getattr(head, 'loss_module', None)
    losses = (loss, getattr(loss, 'ce', None))
    # MMPretrain's focal loss has sigmoids, and does not say so
    sigmoid = any(
        getattr(each, 'use_sigmoid', type(each).__name__ == 'FocalLoss')
        for each in losses
    )
    # MMPretrain's heads of several labels choose them by a threshold
    return sigmoid or hasattr(head, 'thr')


def _classifier(model: nn.Module) -> str:
    head: Any = getattr(model, 'head', None)
    if hasattr(head, 'norm_product'):
        return _COSINES
    if hasattr(head, 'pre_logits'):
        # MMPretrain's heads return their scores
        return 'head.forward'
    linear = isinstance(getattr(head, 'classifier', None), nn.Linear)
    return 'head.classifier.forward' if linear else ''
