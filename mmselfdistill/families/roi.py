"""Two-stage and cascade detectors: predictions for the student's RoIs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .dense import dense_sites, names_of
from .plan import Family, Plan, Reading, Rows, Seam, Side, Site, parameters_of
from .rois import boxes_and_classes, heads_of, masks_of_rois, run_with_masks
from .shared import (
    UNREAD,
    feature_seam,
    features,
    rows_of_pixels,
    seams,
    stages,
    unread_heads,
    why_no_boxes,
)

# SCNet hands features of the positives from the boxes to the masks.
_STEPS = (
    '_bbox_forward',
    '_slice_pos_feats',
    'feat_relay_head',
    '_mask_forward',
    'semantic_head',
    'glbctx_head',
)
# Chosen by the student: its RoIs, its learned queries, what it indexes of them.
_CHOSEN = ('rois', 'object_feats', 'attn_feats')
_READ = ('shared_head', 'bbox_head', 'mask_head', 'semantic_head', 'feat_relay_head')
# Parts that are not compared.
_SKIPPED = {
    'rpn_head': "its proposals are the student's on both sides; an RPN is compared on "
    'images without labels only',
    'roi_head.mask_iou_head': "it rates the student's masks",
    'roi_head.grid_head': 'its RoIs are jittered between the seams',
    'roi_head.point_head': "its points are of the student's masks",
    'roi_head.glbctx_head': 'labels of whole images: its features are compared',
}


class TwoStageDetector(Family):
    """A detector with a ``roi_head`` of one stage or of a cascade.

    Both sides see the RoIs that the student sampled, or its query boxes.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   neck, one (N, C, H, W) a level: PKD
    logits     one (RoIs, C + 1) a stage: KL; of sigmoid heads (Sparse R-CNN)
               (RoIs, C), over the teacher's positives; of Seesaw's object or not,
               and the classes where the teacher sees an object
    boxes      one (RoIs, 4) a stage, by the teacher's confidence: L1 of the
               offsets of its likeliest class, GIoU of boxes that come decoded
    masks      one (positives, H, W) a stage, of the labelled class: binary KL
    semantic   (N, C, H, W) of a semantic branch: KL of labelled pixels
    proposals, (positions, C), (positions, 4) of an RPN, as of a single-stage
    proposal_  detector: only on images without labels, where nothing else teaches
    boxes      it
    ========== ================================================================

    On images without labels the RoIs are the student's best proposals, and most are
    background: ``logits`` are divided by a soft count of the teacher's positives, and
    ``masks`` are those of the teacher's likeliest class, by its confidence.
    """

    name = 'two-stage detector'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model has a ``roi_head`` with boxes."""
        roi_head = getattr(model, 'roi_head', None)
        return bool(feature_seam(model)) and hasattr(roi_head, '_bbox_forward')

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features and the steps of the RoI head are recorded and read."""
        roi_head: Any = model.roi_head
        semantic = [f'{path}.forward' for path in _semantic_heads(model)]
        masks, proposals = masks_of_rois(roi_head), _proposals(model)
        observed = masks.seams if masks else ()
        plan = Plan(
            cls.name,
            (*seams(feature_seam(model)), *_steps(roi_head)),
            (
                features(model),
                *boxes_and_classes(roi_head),
                *([masks] if masks else []),
                *([_semantic(semantic)] if semantic else []),
                *proposals,
            ),
            skipped=_skipped(model),
            # a cascade makes all masks itself
            run=run_with_masks if masks and len(heads_of(roi_head)) == 1 else None,
        )
        others = [path for site in proposals for path in site.seams]
        labels = (Seam(path, repeat=False) for path in observed)
        return plan.with_seams(*seams(*semantic, *others), *labels)


def _steps(roi_head: Any) -> list[Seam]:
    """Return the steps of the RoI head, of which none proposes or samples."""
    found = []
    for name in _STEPS:
        part = getattr(roi_head, name, None)
        if part is not None:
            call = '.forward' if isinstance(part, nn.Module) else ''
            found.append(Seam(f'roi_head.{name}{call}', keep=_CHOSEN))
    return found


def _skipped(model: nn.Module) -> dict[str, str]:
    parts = {name for name, _ in model.named_modules()}
    found = {name: why for name, why in _SKIPPED.items() if name in parts}
    roi_head: Any = model.roi_head
    for name in unread_heads(roi_head, _READ):
        found.setdefault(f'roi_head.{name}', UNREAD)
    if 'attn_feats' in parameters_of(getattr(roi_head, '_mask_forward', None)):
        found['query features of the masks'] = "the student's, as the queries are"
    for why in filter(None, map(why_no_boxes, heads_of(roi_head))):
        found['boxes'] = why
    return found


def _proposals(model: nn.Module) -> list[Site]:
    """Return the sites of an RPN that predicts at each position."""
    head: Any = getattr(model, 'rpn_head', None)
    names = names_of(head)
    # a cascade of them moves its anchors: each model has its own
    if 'cls_scores' not in names or hasattr(head, 'stages'):
        return []
    renamed = dict(logits='proposals', boxes='proposal_boxes')
    return [
        replace(
            site,
            name=renamed[site.name],
            default={**(site.default or {}), 'on': 'unlabeled'},
        )
        for site in dense_sites({'rpn_head': names}, head)
        if site.name in renamed
    ]


def _semantic_heads(model: nn.Module) -> list[str]:
    name = 'semantic_head'
    inside = stages(model.get_submodule('roi_head'), name)
    return [*stages(model, name), *(f'roi_head.{path}' for path in inside)]


def _ignored(head: Any) -> int:
    """Return the label that a semantic head's loss leaves out."""
    loss = getattr(head, 'loss_seg', None) or getattr(head, 'criterion', None)
    ignored = getattr(loss, 'ignore_index', None)
    return 255 if ignored is None else int(ignored)


def _semantic(paths: list[str]) -> Site:
    def read(side: Side) -> list[Reading]:
        outputs = [call.output for path in paths for call in side.of(path)]
        scores = [o['seg_preds'] if isinstance(o, dict) else o[0] for o in outputs]
        return [Reading(each, 'softmax') for each in scores]

    def weigh(side: Side) -> list[Rows]:
        ignored = [
            _ignored(side.model.get_submodule(path.rpartition('.')[0]))
            for path in paths
            for _ in side.of(path)
        ]
        return [
            rows_of_pixels(side, reading.at(None), 'softmax', ignore)
            for reading, ignore in zip(read(side), ignored)
        ]

    default = dict(type='SoftTargetLoss', weight=0.25)
    return Site('semantic', tuple(paths), read, weigh, default, by_confidence=True)
