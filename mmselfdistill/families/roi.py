"""Two-stage and cascade detectors: predictions for the student's RoIs."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor, nn

from .plan import (
    Call,
    Family,
    Plan,
    Reading,
    Rows,
    Seam,
    Side,
    Site,
    argument,
    by_count,
    chosen,
    parameters_of,
)
from .shared import (
    UNREAD,
    as_sides,
    feature_seam,
    features,
    foreground,
    kind_of,
    labelled,
    seams,
    stages,
    unread_heads,
)

_BOXES = 'roi_head._bbox_forward'
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
    'rpn_head': "its proposals are the same on both sides: the student's",
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
    ========== ================================================================
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
        masks = _masks(roi_head)
        observed = masks.seams if masks else ()
        return Plan(
            cls.name,
            (
                *seams(feature_seam(model)),
                *_steps(roi_head),
                *seams(*(path for path in semantic if path[:9] != 'roi_head.')),
                *(Seam(path, repeat=False) for path in observed),
            ),
            (
                features(model),
                *_boxes_and_classes(roi_head),
                *([masks] if masks else []),
                *([_semantic(semantic)] if semantic else []),
            ),
            skipped=_skipped(model),
        )


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
    if any(hasattr(head, 'num_buckets') for head in _heads(roi_head)):
        found['boxes'] = 'buckets and offsets in them: only together a box'
    return found


def _heads(roi_head: Any) -> list[Any]:
    heads = roi_head.bbox_head
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _boxes_and_classes(roi_head: Any) -> list[Site]:
    heads = _heads(roi_head)
    stage: Callable[[Call], int] = lambda call: 0  # noqa: E731
    if len(heads) > 1:
        stage = argument(roi_head._bbox_forward, 'stage')

    def site(name: str, read: Any, weigh: Any, **default: Any) -> Site:
        def each(one: Any, side: Side) -> list[Any]:
            calls = side.of(_BOXES)
            return [x for call in calls for x in one(heads[stage(call)], call)]

        return Site(name, (_BOXES,), partial(each, read), partial(each, weigh), default)

    logits = dict(type='SoftTargetLoss', weight=1.0)
    boxes = dict(type='BoxDistillLoss', weight=0.25)
    found = [site('logits', _logits, _of_logits, **logits)]
    # not by buckets (SABL), and not by a grid
    if all(_has_offsets(head) for head in heads):
        found.append(site('boxes', _boxes, _of_boxes, **boxes))
    return found


def _has_offsets(head: Any) -> bool:
    return not hasattr(head, 'num_buckets') and bool(getattr(head, 'with_reg', True))


def _logits(head: Any, call: Call) -> list[Reading]:
    scores, kind = _scores(head, call), kind_of(head)
    if _is_seesaw(head, scores):
        # then object and background
        return [Reading(scores[:, -2:], 'softmax'), Reading(scores[:, :-2], kind)]
    return [Reading(_classes(head, scores), kind)]


def _of_logits(head: Any, call: Call) -> list[Rows]:
    scores = _scores(head, call)
    if _is_seesaw(head, scores):
        return [Rows(), Rows(weight=_objects(head, scores))]
    if kind_of(head) == 'sigmoid':
        return [by_count(_objects(head, scores))]
    return [Rows()]


def _boxes(head: Any, call: Call) -> list[Reading]:
    if 'decoded_bboxes' in call.output:
        return [Reading(as_sides(call.output['decoded_bboxes']), 'sides')]
    boxes, count = call.output['bbox_pred'], getattr(head, 'num_instance', 1)
    # (RoIs * count, boxes, 4), none included
    shape = (len(boxes) * count, boxes.shape[1] // count // 4, 4)
    return [Reading(chosen(boxes.reshape(shape)), 'offsets')]


def _of_boxes(head: Any, call: Call) -> list[Rows]:
    scores = _scores(head, call)
    if 'decoded_bboxes' in call.output:
        return [Rows(weight=_objects(head, scores))]
    count = getattr(head, 'num_instance', 1)
    boxes = call.output['bbox_pred'].shape[1] // count // 4
    best = scores[:, :boxes].argmax(1) if boxes > 1 else scores.new_zeros(len(scores))
    return [Rows(weight=_objects(head, scores), index=best.long())]


def _scores(head: Any, call: Call) -> Tensor:
    """Return class scores (RoIs, C): CrowdDet has several objects in a RoI."""
    scores: Tensor = call.output['cls_score']
    if scores.dim() == 3:
        return scores.flatten(0, 1)
    count = getattr(head, 'num_instance', 1)
    return scores.reshape(len(scores) * count, scores.shape[1] // count)


def _is_seesaw(head: Any, scores: Tensor) -> bool:
    # other losses have an activation of their own too, and no such channels
    custom = getattr(head.loss_cls, 'custom_activation', False)
    return bool(custom) and scores.shape[1] == head.num_classes + 2


def _classes(head: Any, scores: Tensor) -> Tensor:
    """Return (RoIs, C), or (RoIs, C + 1) where a softmax needs the background."""
    return scores[:, : head.num_classes] if kind_of(head) == 'sigmoid' else scores


def _objects(head: Any, scores: Tensor) -> Tensor:
    """Return the probability (RoIs) of any object."""
    if _is_seesaw(head, scores):
        return foreground(scores[:, -2:], 'softmax')
    return foreground(_classes(head, scores), kind_of(head))


def _masks(roi_head: Any) -> Site | None:
    """Return the masks as their loss is given them, which knows the labels."""
    if not getattr(roi_head, 'with_mask', False):
        return None
    takes = {}
    for path in stages(roi_head, 'mask_head'):
        method = roi_head.get_submodule(path).loss_and_target
        arguments = ('mask_preds', 'sampling_results')
        takes[f'roi_head.{path}.loss_and_target'] = [
            argument(method, name) for name in arguments
        ]

    def read(side: Side) -> list[Reading]:
        return [
            Reading(_of_labels(*(take(call) for take in taken)), 'mask')
            for path, taken in takes.items()
            for call in side.of(path)
        ]

    default = dict(type='MaskDistillLoss', weight=1.0)
    return Site('masks', tuple(takes), read, default=default)


def _of_labels(masks: Tensor, sampled: list[Any]) -> Tensor:
    labels = torch.cat([result.pos_gt_labels for result in sampled])
    return chosen(masks)(torch.zeros_like(labels) if masks.shape[1] == 1 else labels)


def _semantic_heads(model: nn.Module) -> list[str]:
    name = 'semantic_head'
    inside = stages(model.get_submodule('roi_head'), name)
    return [*stages(model, name), *(f'roi_head.{path}' for path in inside)]


def _semantic(paths: list[str]) -> Site:
    def read(side: Side) -> list[Reading]:
        calls = [call for path in paths for call in side.of(path)]
        return [Reading(_pixels(call), 'softmax') for call in calls]

    def weigh(side: Side) -> list[Rows]:
        sizes = [reading.at(None).shape[2:] for reading in read(side)]
        return [Rows(weight=labelled(side.samples, size, 255)) for size in sizes]

    default = dict(type='SoftTargetLoss', weight=0.25)
    return Site('semantic', tuple(paths), read, weigh, default)


def _pixels(call: Call) -> Tensor:
    """Return the class scores of a semantic head: its first or named output."""
    output = call.output
    scores: Tensor = output['seg_preds'] if isinstance(output, dict) else output[0]
    return scores
