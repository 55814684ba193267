"""Two-stage and cascade detectors: predictions for the student's RoIs."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmselfdistill.replay import Call

from .family import (
    UNREAD,
    Family,
    Pair,
    Reader,
    Replayed,
    labelled,
    stages,
    unread_heads,
)
from .predictions import activation_of, corners_as_distances, foreground

# SCNet hands features of the positives from the boxes to the masks.
_STEPS = (
    '_bbox_forward',
    '_slice_pos_feats',
    'feat_relay_head',
    '_mask_forward',
    'semantic_head',
    'glbctx_head',
)
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
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0),
        'boxes': dict(type='BoxDistillLoss', weight=0.25),
        'masks': dict(type='MaskDistillLoss', weight=1.0),
        'semantic': dict(type='SoftTargetLoss', weight=0.25),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.roi_head: Any = model.roi_head

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has a ``roi_head`` with boxes."""
        roi_head = getattr(model, 'roi_head', None)
        return super().matches(model) and hasattr(roi_head, '_bbox_forward')

    def seams(self) -> list[str]:
        """Return the steps of the RoI head, of which none proposes or samples."""
        paths = [self.features]
        for name in _STEPS:
            part = getattr(self.roi_head, name, None)
            if part is not None:
                call = '.forward' if isinstance(part, nn.Module) else ''
                paths.append(f'roi_head.{name}{call}')
        return [*paths, *(f'{path}.forward' for path in stages(self.model, _SEMANTIC))]

    def observed(self) -> list[str]:
        """Return where the labels of the sampled RoIs are seen: the mask loss."""
        if not getattr(self.roi_head, 'with_mask', False):
            return []
        heads = stages(self.roi_head, 'mask_head')
        return [f'roi_head.{head}.loss_and_target' for head in heads]

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a RoI head."""
        readers = super().readers()
        readers['logits'] = self._read_logits
        if self._has_offsets():
            readers['boxes'] = self._read_boxes
        if self.observed():
            readers['masks'] = self._read_masks
        if self._semantic_paths():
            readers['semantic'] = self._read_semantic
        return readers

    def skipped(self) -> dict[str, str]:
        """Return parts that are not compared."""
        parts = {name for name, _ in self.model.named_modules()}
        found = {name: why for name, why in _SKIPPED.items() if name in parts}
        for name in unread_heads(self.roi_head, _READ):
            found.setdefault(f'roi_head.{name}', UNREAD)
        if any(hasattr(head, 'num_buckets') for head in self._heads()):
            found['boxes'] = 'buckets and offsets in them: only together a box'
        return found

    def _heads(self) -> list[Any]:
        heads = self.roi_head.bbox_head
        return list(heads) if isinstance(heads, nn.ModuleList) else [heads]

    def _has_offsets(self) -> bool:
        """Say whether boxes are regressed: not by buckets (SABL) or a grid."""
        heads = self._heads()
        buckets = any(hasattr(head, 'num_buckets') for head in heads)
        return not buckets and all(getattr(head, 'with_reg', True) for head in heads)

    def _semantic_paths(self) -> list[str]:
        inside = stages(self.roi_head, _SEMANTIC)
        return [*stages(self.model, _SEMANTIC), *(f'roi_head.{p}' for p in inside)]

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for ours, theirs in replayed.of('roi_head._bbox_forward'):
            head = self._head(ours)
            student, teacher = _scores(head, ours), _scores(head, theirs)
            context: dict[str, Any] = dict(activation=activation_of(head))
            if _is_seesaw(head, teacher):
                both = (student[:, -2:], teacher[:, -2:])
                pairs.append(Pair('objects', *both, dict(activation='softmax')))
                context.update(valid=_objects(head, teacher))
            elif context['activation'] == 'sigmoid':
                context.update(average_over='positives')
            both = (_classes(head, student), _classes(head, teacher))
            pairs.append(Pair(f'logits[{len(pairs)}]', *both, context))
        return pairs

    def _read_boxes(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for ours, theirs in replayed.of('roi_head._bbox_forward'):
            head = self._head(ours)
            scores = _scores(head, theirs)
            context = dict(confidence=_objects(head, scores), box_kind='deltas')
            if 'decoded_bboxes' in ours.output:
                context.update(box_kind='distances')
                student = corners_as_distances(ours.output['decoded_bboxes'])
                teacher = corners_as_distances(theirs.output['decoded_bboxes'])
            else:
                count = getattr(head, 'num_instance', 1)
                student = _offsets(ours.output['bbox_pred'], count)
                teacher = _offsets(theirs.output['bbox_pred'], count)
                best = likeliest_class(scores, student.shape[1])
                student, teacher = of_class(student, best), of_class(teacher, best)
            pairs.append(Pair(f'boxes[{len(pairs)}]', student, teacher, context))
        return pairs

    def _read_semantic(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for path in self._semantic_paths():
            for ours, theirs in replayed.of(f'{path}.forward'):
                student, teacher = _pixels(ours), _pixels(theirs)
                valid = labelled(replayed.data_samples, student.shape[2:], 255)
                context = dict(activation='softmax', valid=valid)
                pairs.append(Pair('semantic', student, teacher, context))
        return pairs

    def _read_masks(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for path in self.observed():
            head = self.model.get_submodule(path.rpartition('.')[0])
            for ours, theirs in replayed.of(path):
                student, sampled = mask_arguments(head, ours)
                teacher, _ = mask_arguments(head, theirs)
                labels = torch.cat([result.pos_gt_labels for result in sampled])
                if student.shape[1] == 1:
                    labels = torch.zeros_like(labels)
                index = torch.arange(len(student), device=student.device)
                pairs.append(
                    Pair(
                        f'masks[{len(pairs)}]',
                        student[index, labels],
                        teacher[index, labels],
                    )
                )
        return pairs

    def _head(self, call: Call) -> Any:
        heads = self._heads()
        if len(heads) == 1:
            return heads[0]
        return heads[call.kwargs.get('stage', (*call.args, 0)[0])]


_SEMANTIC = 'semantic_head'


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
    if _is_seesaw(head, scores):
        # then object and background
        return scores[:, :-2]
    if activation_of(head) == 'sigmoid':
        return scores[:, : head.num_classes]
    return scores


def _objects(head: Any, scores: Tensor) -> Tensor:
    """Return the probability (RoIs) of any object."""
    if _is_seesaw(head, scores):
        return foreground(scores[:, -2:], 'softmax')
    return foreground(_classes(head, scores), activation_of(head))


def _offsets(boxes: Tensor, count: int) -> Tensor:
    """Return (RoIs, count * boxes * 4) as (RoIs * count, boxes, 4), none included."""
    return boxes.reshape(len(boxes) * count, boxes.shape[1] // count // 4, 4)


def _pixels(call: Call) -> Tensor:
    """Return the class scores of a semantic head: its first or named output."""
    output = call.output
    scores: Tensor = output['seg_preds'] if isinstance(output, dict) else output[0]
    return scores


def likeliest_class(scores: Tensor, boxes: int) -> Tensor:
    """Return the index (RoIs) of the box, of ``boxes`` a RoI, of the best class."""
    if boxes == 1:
        return scores.new_zeros(len(scores), dtype=torch.long)
    return scores[:, :boxes].argmax(1)


def of_class(boxes: Tensor, index: Tensor) -> Tensor:
    """Select one box of each RoI: (RoIs, classes, 4) to (RoIs, 4)."""
    return boxes[torch.arange(len(boxes), device=boxes.device), index]


def mask_arguments(head: Any, call: Call) -> tuple[Tensor, list[Any]]:
    """Return the mask logits and the sampling results that a mask loss was given."""
    bound = inspect.signature(type(head).loss_and_target).bind(
        head, *call.args, **call.kwargs
    )
    return bound.arguments['mask_preds'], bound.arguments['sampling_results']
