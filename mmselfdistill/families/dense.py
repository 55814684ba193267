"""Single-stage detectors: predictions at every position of a feature pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .instance_masks import masks_of
from .plan import Call, Family, Plan, Reading, Rows, Side, Site
from .predictions import READ, Predictions, read_head
from .shared import (
    by_count,
    feature_seam,
    features,
    foreground,
    head_seams,
    output_names,
    seams,
    stages,
    text_seams,
    unread_heads,
    why_no_boxes,
)

# What heads return that is not compared by itself.
_THROUGH_MASKS = 'weights of a convolution, unbounded: compared as the masks they make'
_IN_ANCHORS = 'place and shape of anchors, which are trained by their own rule'
_EMBEDDED = 'embeddings: only their differences within an image mean something'
_AT_CORNERS = 'trained at the few corners only'
_SKIPPED = {
    'param_preds': _THROUGH_MASKS,
    'kernel_preds': _THROUGH_MASKS,
    'coeff_preds': _THROUGH_MASKS,
    'shape_preds': _IN_ANCHORS,
    'loc_preds': _IN_ANCHORS,
    'pts_preds_init': 'a first guess: compared as the points it is refined to',
    **dict.fromkeys(('tl_embs', 'br_embs'), _EMBEDDED),
    **dict.fromkeys(('tl_guiding_shifts', 'br_guiding_shifts'), _AT_CORNERS),
    **dict.fromkeys(('tl_centripetal_shifts', 'br_centripetal_shifts'), _AT_CORNERS),
    **dict.fromkeys(('tl_offs', 'br_offs'), f'parts of a pixel, {_AT_CORNERS}'),
}
_BOXES = {'bbox_preds', 'pts_preds_refine', 'pred_maps', 'wh_preds'}
_QUALITY = {'objectnesses', 'centernesses', 'iou_preds', 'pred_maps'}


class DenseDetector(Family):
    """A detector whose ``bbox_head`` predicts at each position of a pyramid.

    The head's ``loss_by_feat`` names what its ``forward`` returns, in the same
    order; :mod:`.predictions` has how each kind is read.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   neck, one (N, C, H, W) a level: PKD
    logits     (positions, C) of all anchors, levels and images. Quality-focal
               KL of all, divided by a soft count of the teacher's positives. Of
               heads that train classes only at objects (YOLO), weighted by the
               teacher's objectness. Heatmaps of centres or corners likewise
    boxes      (positions, 4) by the teacher's confidence: KL of distributions,
               GIoU of distances, corners and points, L1 of encoded offsets
    quality    objectness (everywhere), or centreness or IoU (where the teacher
               sees an object): binary KL
    masks      (instances, H, W) where there is a mask head: binary KL. Of positives
               (CondInst, YOLACT); without labels, and of heads that have a mask for
               each cell, of the cells where the teacher is surest of an object
    ========== ================================================================
    """

    name = 'single-stage detector'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model has a dense ``bbox_head`` of its own."""
        head: Any = getattr(model, 'bbox_head', None)
        last = head.stages[-1] if hasattr(head, 'stages') else head
        readable = any(name in READ for name in output_names(last))
        return readable and bool(feature_seam(model)) and not hasattr(model, 'roi_head')

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features, heads and masks are recorded and read."""
        paths = stages(model, 'bbox_head')
        # the heads of a cascade are inside one that only passes on
        inside = stages(model.get_submodule('bbox_head'), 'stages')
        paths = [f'bbox_head.{path}' for path in inside] or paths
        heads: list[Any] = [model.get_submodule(path) for path in paths]
        # the first of a cascade of proposals only moves anchors
        read = {
            path: names_of(head)
            for path, head in zip(paths, heads)
            if getattr(head, 'with_cls', True)
        }
        returned = {*output_names(heads[-1])}
        masks = masks_of(model)
        ours = [f'{path}.forward' for path in paths]
        others = [p for p in head_seams(model) if not p.startswith('bbox_head.')]
        known = ['bbox_head', *(['mask_head'] if masks.sites else [])]
        return Plan(
            cls.name,
            (
                *seams(feature_seam(model), *text_seams(model), *ours),
                # between the box head and the mask head, which is given its positives
                *masks.seams,
                *seams(*others),
            ),
            (features(model), *dense_sites(read, heads[-1]), *masks.sites),
            skipped={**_skipped(heads[-1], returned), **unread_heads(model, known)},
            run=masks.run,
        )


def dense_sites(read: dict[str, list[str]], head: Any) -> list[Site]:
    """Return the sites of heads that predict at each position.

    Args:
        read (dict[str, list[str]]): Paths of the heads, and the names of what each
            returns: see :func:`names_of`.
        head (nn.Module): The last of them.
    """
    returned = {*output_names(head)}
    paths = tuple(f'{path}.forward' for path in read)
    predictions = partial(_read_heads, read)

    def read_each(one: Any, side: Side) -> list[Any]:
        return [one(each) for each in side.once('dense', predictions)]

    def site(name: str, reading: Any, weigh: Any, **default: Any) -> Site:
        each = partial(read_each, reading), partial(read_each, weigh)
        return Site(name, paths, *each, default)

    logits = dict(type='SoftTargetLoss', weight=1.0, beta=1.0)
    boxes = dict(type='BoxDistillLoss', weight=0.25)
    quality = dict(type='SoftTargetLoss', weight=0.25)
    found = [site('logits', _logits, _of_logits, **logits)]
    if returned & _BOXES and not {'shape_preds'} & returned and not why_no_boxes(head):
        found.append(site('boxes', _boxes, _of_boxes, **boxes))
    if returned & _QUALITY:
        found.append(site('quality', _quality, _of_quality, **quality))
    return found


def _logits(found: Predictions) -> Reading:
    return Reading(found.logits, found.kind)


def _of_logits(found: Predictions) -> Rows:
    if found.peaks is not None:
        return by_count(found.peaks)
    if found.objectness is None:
        return by_count(foreground(found.logits, found.kind))
    return Rows(weight=found.objectness.float().sigmoid())


def _boxes(found: Predictions) -> Reading:
    assert found.boxes is not None
    return Reading(found.boxes, found.box_kind)


def _of_boxes(found: Predictions) -> Rows:
    return Rows(weight=found.foreground())


def _quality(found: Predictions) -> Reading:
    logit = found.quality if found.objectness is None else found.objectness
    assert logit is not None
    return Reading(logit[:, None], 'sigmoid')


def _of_quality(found: Predictions) -> Rows:
    if found.objectness is None:
        return Rows(weight=foreground(found.logits, found.kind))
    return by_count(found.objectness.float().sigmoid())


def _read_heads(read: dict[str, list[str]], side: Side) -> list[Predictions]:
    # what decodes boxes may be learned: each side has its own head
    return [
        read_head(side.model.get_submodule(path), _named(names, call))
        for path, names in read.items()
        for call in side.of(f'{path}.forward')
    ]


def names_of(head: Any) -> list[str]:
    """Return the names of what a head returns, in order."""
    names = output_names(head)
    return ['features', *names[2:]] if 'anchor_list' in names else names


def _named(names: list[str], call: Call) -> dict[str, Any]:
    """Name what a head returned, with the mask of the text that it was given."""
    given = (*call.args, *call.kwargs.values())
    texts = [each for each in given if isinstance(each, dict) and 'masks' in each]
    text = dict(text_masks=texts[0]['masks']) if texts else {}
    return {**text, **dict(zip(names, call.output))}


def _skipped(head: Any, returned: set[str]) -> dict[str, str]:
    found = {name: why for name, why in _SKIPPED.items() if name in returned}
    if 'shape_preds' in returned:
        found['bbox_preds'] = 'offsets from anchors that each model predicts itself'
    if 'bbox_preds_refine' in returned:
        found['bbox_preds'] = 'a first guess: compared as what it is refined to'
    if why_no_boxes(head):
        found['bbox_preds'] = why_no_boxes(head)
    return found
