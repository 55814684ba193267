"""Detectors with a mask for each cell of a grid."""

from __future__ import annotations

from torch import nn

from .cell_masks import levels_of, masks_of_cells
from .plan import Family, Plan, Reading, Side, Site
from .shared import (
    feature_seam,
    features,
    head_seams,
    kind_of,
    output_names,
    over_objects,
    rows,
    seams,
)


class MaskGridDetector(Family):
    """A detector with a ``mask_head`` alone, which has a mask for each cell.

    SOLO in its kinds. Sites: ``features``, ``logits`` (one (cells, C) for all
    levels: quality-focal KL over the teacher's positives), ``masks`` (one
    (cells, H, W) a level, of the cells where the teacher is surest of an
    object, weighted by that: binary KL).
    """

    name = 'grid of masks'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model has a ``mask_head`` over a grid of cells."""
        names = output_names(getattr(model, 'mask_head', None))
        return bool(feature_seam(model)) and 'mlvl_cls_preds' in names

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features and masks are recorded and read."""
        head = model.get_submodule('mask_head')
        names = output_names(head)

        def read(side: Side) -> list[Reading]:
            found = []
            for call in side.of('mask_head.forward'):
                own = side.model.get_submodule('mask_head')
                levels = [each.logits for each in levels_of(own, names, call.output)]
                found.append(Reading(rows(levels, levels[0].shape[1]), kind_of(own)))
            return found

        default = dict(type='SoftTargetLoss', weight=1.0, beta=1.0)
        logits = Site(
            'logits', ('mask_head.forward',), read, over_objects(read), default
        )
        sites = (features(model), logits, masks_of_cells('mask_head', head))
        return Plan(cls.name, seams(feature_seam(model), *head_seams(model)), sites)
