"""How each family of models is recorded, and where student and teacher are compared.

This is the one place that knows how MMDetection and MMSegmentation build their
models. To add a family, subclass :class:`Family` and put it in front of
:data:`FAMILIES`, here or from any package of your own.
"""

from __future__ import annotations

from torch import nn

from .classifier import Classifier
from .dense import DenseDetector
from .grid import MaskGridDetector
from .mask_query import MaskClassifier
from .nested import Nested
from .plain import AnyModel, Unknown
from .plan import Family, Plan, Reading, Rows, Seam, Side, Site
from .query import CollaborativeDetector, QueryDetector
from .roi import TwoStageDetector
from .segmentor import Segmentor
from .shared import outputs_of

FAMILIES: list[type[Family]] = [
    Nested,
    QueryDetector,
    CollaborativeDetector,
    MaskClassifier,
    TwoStageDetector,
    DenseDetector,
    MaskGridDetector,
    Segmentor,
    Classifier,
    AnyModel,
]


def find_plan(model: nn.Module) -> Plan:
    """Return the plan of the first family in :data:`FAMILIES` that matches a model.

    Args:
        model (nn.Module): The model, not its DDP wrapper.

    Returns:
        Plan: Of a model that none matches, one without sites: its modules can still be
        compared, by path.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family.plan(model)
    return Unknown.plan(model)


__all__ = [
    'FAMILIES',
    'AnyModel',
    'Classifier',
    'CollaborativeDetector',
    'DenseDetector',
    'Family',
    'MaskClassifier',
    'MaskGridDetector',
    'Nested',
    'Plan',
    'QueryDetector',
    'Reading',
    'Rows',
    'Seam',
    'Segmentor',
    'Side',
    'Site',
    'TwoStageDetector',
    'Unknown',
    'find_plan',
    'outputs_of',
]
