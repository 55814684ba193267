"""What a RoI head predicts for each of its RoIs: classes, boxes and masks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from mmselfdistill.containers import tensors_in
from mmselfdistill.wrapping import wrapped

from .plan import Call, Reading, Rows, Side, Site, argument, parameters_of
from .shared import as_sides, by_count, foreground, stages, why_no_boxes

_BOXES = 'roi_head._bbox_forward'
_MASKS = 'roi_head._mask_forward'
# RoIs of a batch without labels that have a mask: as many as in the mode 'tensor'
_MASKED = 100


def heads_of(roi_head: Any) -> list[Any]:
    """Return the head of each stage."""
    heads = roi_head.bbox_head
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def boxes_and_classes(roi_head: Any) -> list[Site]:
    """Return the sites of the classes, and of the boxes where each is a box."""
    heads = heads_of(roi_head)
    stage: Callable[[Call], int] = lambda call: 0  # noqa: E731
    if len(heads) > 1:
        stage = argument(roi_head._bbox_forward, 'stage')

    def site(name: str, read: Any, weigh: Any, **default: Any) -> Site:
        def each(one: Any, side: Side) -> list[Any]:
            calls = side.of(_BOXES)
            return [x for call in calls for x in one(heads[stage(call)], call)]

        return Site(name, (_BOXES,), partial(each, read), partial(each, weigh), default)

    def by_objects(head: Any, call: Call) -> list[Rows]:
        # Seesaw's classes are weighted already
        rest = _of_logits(head, call)[1:]
        return [by_count(_objects(head, _scores(head, call))), *rest]

    logits = dict(type='SoftTargetLoss', weight=1.0)
    boxes = dict(type='BoxDistillLoss', weight=0.25)
    found = [
        replace(
            site('logits', _logits, _of_logits, **logits),
            unlabeled=site('logits', _logits, by_objects),
        )
    ]
    # none by a grid
    if all(
        getattr(head, 'with_reg', True) and not why_no_boxes(head) for head in heads
    ):
        found.append(site('boxes', _boxes, _of_boxes, **boxes))
    return found


def _logits(head: Any, call: Call) -> list[Reading]:
    scores = _scores(head, call)
    if _is_seesaw(head, scores):
        # then object and background
        return [Reading(scores[:, -2:], 'softmax'), Reading(scores[:, :-2], 'softmax')]
    return [Reading(scores, _kind(head, scores))]


def _of_logits(head: Any, call: Call) -> list[Rows]:
    scores = _scores(head, call)
    if _is_seesaw(head, scores):
        return [Rows(), Rows(weight=_objects(head, scores))]
    if _kind(head, scores) == 'sigmoid':
        return [by_count(_objects(head, scores))]
    return [Rows()]


def _boxes(head: Any, call: Call) -> list[Reading]:
    if 'decoded_bboxes' in call.output:
        return [Reading(as_sides(call.output['decoded_bboxes']), 'sides')]
    boxes, count = _last(call, 'bbox_pred'), getattr(head, 'num_instance', 1)
    # (RoIs * count, boxes, 4), none included
    shape = (len(boxes) * count, boxes.shape[1] // count // 4, 4)
    return [Reading(chosen(boxes.reshape(shape)), 'offsets')]


def _of_boxes(head: Any, call: Call) -> list[Rows]:
    scores = _scores(head, call)
    if 'decoded_bboxes' in call.output:
        return [Rows(weight=_objects(head, scores))]
    count = getattr(head, 'num_instance', 1)
    boxes = _last(call, 'bbox_pred').shape[1] // count // 4
    best = scores[:, :boxes].argmax(1) if boxes > 1 else scores.new_zeros(len(scores))
    return [Rows(weight=_objects(head, scores), index=best.long())]


def _scores(head: Any, call: Call) -> Tensor:
    """Return class scores (RoIs, C): CrowdDet has several objects in a RoI."""
    scores = _last(call, 'cls_score')
    if scores.dim() == 3:
        return scores.flatten(0, 1)
    count = getattr(head, 'num_instance', 1)
    return scores.reshape(len(scores) * count, scores.shape[1] // count)


def _last(call: Call, name: str) -> Tensor:
    """Return what inference goes by: CrowdDet may refine its scores and boxes."""
    found: Tensor = call.output.get(f'{name}_ref', call.output[name])
    return found


def _is_seesaw(head: Any, scores: Tensor) -> bool:
    # other losses have an activation of their own too, and no such channels
    custom = getattr(head.loss_cls, 'custom_activation', False)
    return bool(custom) and scores.shape[1] == head.num_classes + 2


def _kind(head: Any, scores: Tensor) -> str:
    """Say how scores (RoIs, C) become probabilities in inference.

    Where there is a background class that is a softmax, whatever the loss takes.
    """
    return 'sigmoid' if scores.shape[1] == head.num_classes else 'softmax'


def _objects(head: Any, scores: Tensor) -> Tensor:
    """Return the probability (RoIs) of any object."""
    if _is_seesaw(head, scores):
        return foreground(scores[:, -2:], 'softmax')
    if getattr(head, 'num_instance', 1) > 1:
        # CrowdDet's background is its first class
        return foreground(scores.flip(1), 'softmax')
    return foreground(scores, _kind(head, scores))


def run_with_masks(model: Any, inputs: Tensor, samples: Sequence[Any]) -> None:
    """Run a detector of one stage of RoIs, with the masks of each image's proposals.

    In the mode 'tensor' it makes those of the first RoIs of a batch: the first image's.

    Args:
        model (nn.Module): With a ``roi_head``.
        inputs (Tensor): The images.
        samples (Sequence): Data samples without labels.
    """
    forward = partial(_boxes_and_masks, model.roi_head)
    with wrapped(model, {'roi_head.forward': lambda stock: forward}):
        model._forward(inputs, samples)


def _boxes_and_masks(
    roi_head: Any, maps: Any, proposals: Sequence[Any], *_: Any
) -> tuple[()]:
    from mmdet.structures.bbox import bbox2roi

    rois = bbox2roi([each.bboxes for each in proposals])
    # the best of each image, the second best, and so on
    rank = torch.cat([torch.arange(len(each)) for each in proposals])
    rois = rois[rank.argsort(stable=True).to(rois.device)]
    roi_head._bbox_forward(maps, rois)
    roi_head._mask_forward(maps, rois[:_MASKED])
    return ()


def masks_of_rois(roi_head: Any) -> Site | None:
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
    unlabeled = _masks_of_proposals(roi_head)
    return Site('masks', tuple(takes), read, default=default, unlabeled=unlabeled)


def _masks_of_proposals(roi_head: Any) -> Site:
    """Return the masks of proposals, of the class that the teacher chooses."""
    heads = heads_of(roi_head)
    if 'attn_feats' in parameters_of(roi_head._mask_forward):
        # those of QueryInst are of labelled positives alone
        return Site('masks', (), lambda side: [])

    def found(side: Side) -> list[tuple[Tensor, Tensor]]:
        boxes = side.of(_BOXES)
        # of HTC in a list
        masks = [
            m for c in side.of(_MASKS) for m in tensors_in(c.output.get('mask_preds'))
        ]
        scores = _scores(heads[-1], boxes[-1]) if boxes else None
        return [(each, scores[: len(each)]) for each in masks if scores is not None]

    def read(side: Side) -> list[Reading]:
        return [Reading(chosen(masks), 'mask') for masks, _ in found(side)]

    def weigh(side: Side) -> list[Rows]:
        return [
            Rows(
                weight=_objects(heads[-1], scores),
                index=scores[:, : masks.shape[1]].argmax(1),
            )
            for masks, scores in found(side)
        ]

    return Site('masks', (_MASKS, _BOXES), read, weigh)


def chosen(tensor: Tensor) -> Callable[[Any], Tensor]:
    """Return what takes one entry of dimension 1 a row: (N, M, ...) to (N, ...)."""
    rows = torch.arange(len(tensor), device=tensor.device)
    return lambda index: tensor[rows, index]


def _of_labels(masks: Tensor, sampled: list[Any]) -> Tensor:
    labels = torch.cat([result.pos_gt_labels for result in sampled])
    return chosen(masks)(torch.zeros_like(labels) if masks.shape[1] == 1 else labels)
