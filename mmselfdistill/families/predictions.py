"""What a dense head predicts, in one form, whatever the head returns.

One function for each kind of head, chosen by the names of what it returns: the
table is :data:`READ`, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict

import torch
import torch.nn.functional as F
from torch import Tensor

from .shared import as_logits, as_sides, foreground, kind_of, rows

Outputs = Dict[str, Any]


@dataclass
class Predictions:
    """Predictions at every position of all levels and images.

    Args:
        logits (Tensor): Of the classes, (N, C).
        kind (str): 'softmax', background last, or 'sigmoid'.
        boxes (Tensor, optional): (N, 4), or distributions (N, 4 * bins).
        box_kind (str): 'offsets', 'sides' or 'bins'. Defaults to 'offsets'.
        objectness (Tensor, optional): Logit (N) of any object, of heads that
            train their classes only where there is one.
        quality (Tensor, optional): Logit (N) of centreness or IoU, which is
            trained only where there is an object.
        peaks (Tensor, optional): Probability (N) of an object where it is the largest
            among its neighbours, and 0 elsewhere, of heads that decode no other place.
    """

    logits: Tensor
    kind: str = 'sigmoid'
    boxes: Tensor | None = None
    box_kind: str = 'offsets'
    objectness: Tensor | None = None
    quality: Tensor | None = None
    peaks: Tensor | None = None

    def foreground(self) -> Tensor:
        """Return the probability (N) of an object at each position."""
        if self.peaks is not None:
            return self.peaks
        scores = foreground(self.logits, self.kind)
        for logit in (self.objectness, self.quality):
            if logit is not None:
                scores = scores * logit.float().sigmoid()
        return scores


def _classes(head: Any, outputs: Outputs) -> Predictions:
    """Read class scores, and what may come with them at each position."""
    levels = outputs['cls_scores']
    classes = getattr(head, 'cls_out_channels', None) or levels[0].shape[1]
    if levels[0].dim() == 3:
        # one score a token of a text: (N, H * W, tokens), of which some are padding
        padding = outputs['text_masks'][:, None] == 0
        held = [level.masked_fill(padding, -torch.inf) for level in levels]
        logits = torch.cat([level.flatten(0, 1) for level in held])
    else:
        logits = rows(levels, classes)
    if getattr(getattr(head, 'loss_cls', None), 'activated', False):
        logits = as_logits(logits)
    found = Predictions(logits, kind_of(head))
    if 'objectnesses' in outputs:
        found.objectness = rows(outputs['objectnesses'], 1)[:, 0]
    for name in ('centernesses', 'iou_preds'):
        if name in outputs:
            found.quality = rows(outputs[name], 1)[:, 0]
    return found


def _boxes(head: Any, outputs: Outputs) -> Predictions:
    """Read boxes: offsets, distances to four sides, or their distributions."""
    found = _classes(head, outputs)
    refined = 'bbox_preds_refine' in outputs
    levels = outputs['bbox_preds_refine' if refined else 'bbox_preds']
    if not isinstance(levels[0], Tensor):
        # buckets for each side, and offsets in them, which mean nothing alone
        return found
    scores = outputs['cls_scores'][0]
    # of the first level: SSD has another number of anchors at each
    anchors = scores.shape[1] // found.logits.shape[1] if scores.dim() == 4 else 1
    found.boxes = rows(levels, levels[0].shape[1] // anchors)
    coder = type(getattr(head, 'bbox_coder', None)).__name__
    # Fovea has the coder, and predicts logarithms
    in_units = not hasattr(head, 'base_edge_list')
    if found.boxes.shape[1] > 4:
        found.box_kind = 'bins'
    elif hasattr(head, 'cls_prob_module'):
        # TOOD returns the corners of boxes
        found.boxes, found.box_kind = as_sides(found.boxes), 'sides'
    elif coder == 'TBLRBBoxCoder':
        # FSAF: top, bottom, left, right, in parts of a square
        found.boxes, found.box_kind = found.boxes[:, [2, 0, 3, 1]], 'sides'
    elif coder == 'DistancePointBBoxCoder' and in_units:
        found.box_kind = 'sides'
    return found


def _points(head: Any, outputs: Outputs) -> Predictions:
    """Read RepPoints: the boxes that its point sets span."""
    found = _classes(head, outputs)
    boxes = [head.points2bbox(level) for level in outputs['pts_preds_refine']]
    found.boxes, found.box_kind = as_sides(rows(boxes, 4)), 'sides'
    return found


def _maps(head: Any, outputs: Outputs) -> Predictions:
    """Read YOLOv3: box, objectness and classes in one map."""
    flat = rows(outputs['pred_maps'], head.num_attrib)
    # places in a cell, of which the head trains sigmoids, and logarithms of sizes
    boxes = torch.cat([flat[:, :2].sigmoid(), flat[:, 2:4]], 1)
    return Predictions(flat[:, 5:], boxes=boxes, objectness=flat[:, 4])


def _centers(head: Any, outputs: Outputs) -> Predictions:
    """Read CenterNet: a heatmap of centres, with the box around each."""
    heats = outputs['center_heatmap_preds']
    heat = as_logits(rows(heats, head.num_classes))
    half = rows(outputs['wh_preds'], 2) / 2
    offset = rows(outputs['offset_preds'], 2)
    boxes = torch.cat([half - offset, half + offset], 1)
    return Predictions(heat, boxes=boxes, box_kind='sides', peaks=_peaks(heats))


def _corners(head: Any, outputs: Outputs) -> Predictions:
    """Read CornerNet: heatmaps of two corners of boxes."""
    both = [*outputs['tl_heats'], *outputs['br_heats']]
    peaks = _peaks([level.sigmoid() for level in both])
    return Predictions(rows(both, head.num_classes), peaks=peaks)


def _peaks(heats: list[Tensor]) -> Tensor:
    """Return the heat (N) where it is the largest of 3 x 3 neighbours, 0 elsewhere."""
    flat = [
        torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, 0.0).amax(1).flatten()
        for heat in (each.detach() for each in heats)
    ]
    return torch.cat(flat).float()


# The name of an output tells the kind; the first that is there counts.
READ: dict[str, Callable[[Any, Outputs], Predictions]] = {
    'pred_maps': _maps,
    'center_heatmap_preds': _centers,
    'tl_heats': _corners,
    'pts_preds_refine': _points,
    'bbox_preds': _boxes,
    'cls_scores': _classes,
}


def read_head(head: Any, outputs: Outputs) -> Predictions:
    """Read what a dense head returned, by name."""
    kind = next(name for name in READ if name in outputs)
    return READ[kind](head, outputs)
