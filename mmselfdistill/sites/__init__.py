"""Where student and teacher are compared, for each family of models.

This is the one place that knows how MMDetection and MMSegmentation build their
models. To add a family, subclass :class:`Family` and put it in front of
:data:`FAMILIES`, here or from any package of your own.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from .classifier import Classifier
from .collaborative import CollaborativeDetector
from .dense import DenseDetector
from .family import Family, Pair, Reader, Replayed, Unknown, read_outputs
from .instance_masks import MaskGridDetector
from .nested import Nested
from .query import QueryDetector, QuerySegmentor
from .segmentor import Segmentor
from .two_stage import TwoStageDetector

FAMILIES: list[type[Family]] = [
    Nested,
    QueryDetector,
    CollaborativeDetector,
    QuerySegmentor,
    TwoStageDetector,
    DenseDetector,
    MaskGridDetector,
    Segmentor,
    Classifier,
    Family,
]


def find_family(model: nn.Module) -> Family:
    """Return the first family that matches a model.

    A model that none matches still offers its modules, by path.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family(model)
    return Unknown(model)


def module_reader(path: str) -> Reader:
    """Return the reader of a site that is the dotted path of a module."""
    return partial(read_outputs, f'{path}.forward', path)


__all__ = [
    'FAMILIES',
    'Classifier',
    'CollaborativeDetector',
    'DenseDetector',
    'Family',
    'MaskGridDetector',
    'Nested',
    'Pair',
    'QueryDetector',
    'QuerySegmentor',
    'Reader',
    'Replayed',
    'Segmentor',
    'TwoStageDetector',
    'Unknown',
    'find_family',
    'module_reader',
    'read_outputs',
]
