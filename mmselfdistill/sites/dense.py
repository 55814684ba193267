"""Single-stage detectors: predictions at every position of a feature pyramid."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from mmselfdistill.replay import Call

from .family import (
    UNREAD,
    Family,
    Pair,
    Reader,
    Replayed,
    head_seams,
    output_names,
    stages,
    text_seams,
    unread_heads,
)
from .instance_masks import MaskReader, find_masks
from .predictions import READ, Predictions, foreground, read_head

# What heads return that is not compared by itself.
_THROUGH_MASKS = 'weights of a convolution, unbounded: compared as the masks they make'
_IN_ANCHORS = 'place and shape of anchors, which are trained by their own rule'
_SKIPPED = {
    'param_preds': _THROUGH_MASKS,
    'kernel_preds': _THROUGH_MASKS,
    'coeff_preds': _THROUGH_MASKS,
    'shape_preds': _IN_ANCHORS,
    'loc_preds': _IN_ANCHORS,
    'pts_preds_init': 'a first guess: compared as the points it is refined to',
    'tl_embs': 'embeddings: only their differences within an image mean something',
    'br_embs': 'embeddings: only their differences within an image mean something',
    'tl_guiding_shifts': 'trained at the few corners only',
    'br_guiding_shifts': 'trained at the few corners only',
    'tl_centripetal_shifts': 'trained at the few corners only',
    'br_centripetal_shifts': 'trained at the few corners only',
    'tl_offs': 'parts of a pixel, trained at the few corners only',
    'br_offs': 'parts of a pixel, trained at the few corners only',
}


class DenseDetector(Family):
    """A detector whose ``bbox_head`` predicts at each position of a pyramid.

    The head's ``loss_by_feat`` names what its ``forward`` returns, in the same
    order; :mod:`.predictions` has how each kind is read.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   neck, one (N, C, H, W) a level: PKD
    logits     (positions, C) of all anchors, levels and images. Quality-focal
               KL, over the teacher's positives: background does not count. Of
               heads that train classes only at objects (YOLO), weighted by the
               teacher's objectness. Heatmaps of centres or corners likewise
    boxes      (positions, 4) by the teacher's confidence: KL of distributions,
               GIoU of distances, corners and points, L1 of encoded offsets
    quality    objectness (everywhere), or centreness or IoU (where the teacher
               sees an object): binary KL
    masks      (instances, H, W) where there is a mask head: binary KL
    ========== ================================================================
    """

    name = 'single-stage detector'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0, beta=1.0),
        'boxes': dict(type='BoxDistillLoss', weight=0.25),
        'quality': dict(type='SoftTargetLoss', weight=0.25),
        'masks': dict(type='MaskDistillLoss', weight=1.0),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.paths = stages(model, 'bbox_head')
        # the heads of a cascade are inside one that only passes on
        inside = stages(model.get_submodule('bbox_head'), 'stages')
        if inside:
            self.paths = [f'bbox_head.{path}' for path in inside]
        self.heads: list[Any] = [model.get_submodule(path) for path in self.paths]
        self.outputs = output_names(self.heads[-1])
        self.masks: MaskReader | None = find_masks(model)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has a dense ``bbox_head`` of its own."""
        head: Any = getattr(model, 'bbox_head', None)
        last = head.stages[-1] if hasattr(head, 'stages') else head
        readable = any(name in READ for name in output_names(last))
        return readable and super().matches(model) and not hasattr(model, 'roi_head')

    def seams(self) -> list[str]:
        """Return features, head and masks."""
        ours = [f'{path}.forward' for path in self.paths]
        heads = head_seams(self.model)
        others = [path for path in heads if not path.startswith('bbox_head.')]
        # between the box head and the mask head, which is given its positives
        positives = list(self.masks.state) if self.masks else []
        text = text_seams(self.model)
        return [self.features, *text, *ours, *positives, *others]

    def state(self) -> dict[str, str]:
        """Return where the box head keeps its positives for the mask head."""
        return self.masks.state if self.masks else {}

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a dense head."""
        readers = super().readers()
        readers['logits'] = self._read_logits
        if self._has_boxes():
            readers['boxes'] = self._read_boxes
        if {'objectnesses', 'centernesses', 'iou_preds', 'pred_maps'} & {*self.outputs}:
            readers['quality'] = self._read_quality
        if self.masks:
            readers['masks'] = self.masks.read
        return readers

    def skipped(self) -> dict[str, str]:
        """Return outputs of the head that are not compared."""
        found = {name: why for name, why in _SKIPPED.items() if name in self.outputs}
        read = ['bbox_head', *(['mask_head'] if self.masks else [])]
        found.update(dict.fromkeys(unread_heads(self.model, read), UNREAD))
        if 'shape_preds' in self.outputs:
            found['bbox_preds'] = 'offsets from anchors that each model predicts itself'
        if 'bbox_preds_refine' in self.outputs:
            found['bbox_preds'] = 'a first guess: compared as what it is refined to'
        if hasattr(self.heads[-1], 'num_buckets'):
            found['bbox_preds'] = 'buckets and offsets in them: only together a box'
        return found

    def _has_boxes(self) -> bool:
        buckets = hasattr(self.heads[-1], 'num_buckets')
        named = {'bbox_preds', 'pts_preds_refine', 'pred_maps', 'wh_preds'}
        own_anchors = 'shape_preds' in self.outputs
        return bool(named & {*self.outputs}) and not buckets and not own_anchors

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in self._predictions(replayed):
            context: dict[str, Any] = dict(activation=ours.activation)
            if theirs.objectness is None:
                context.update(average_over='positives')
            else:
                context.update(valid=theirs.objectness.float().sigmoid())
            pairs.append(Pair('logits', ours.logits, theirs.logits, context))
        return pairs

    def _read_boxes(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in self._predictions(replayed):
            if ours.boxes is not None and theirs.boxes is not None:
                sure = theirs.foreground()
                context = dict(confidence=sure, box_kind=ours.box_kind)
                pairs.append(Pair('boxes', ours.boxes, theirs.boxes, context))
        return pairs

    def _read_quality(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in self._predictions(replayed):
            context: dict[str, Any] = dict(activation='sigmoid')
            if ours.objectness is not None and theirs.objectness is not None:
                student, teacher = ours.objectness, theirs.objectness
                context.update(average_over='positives')
            else:
                assert ours.quality is not None and theirs.quality is not None
                student, teacher = ours.quality, theirs.quality
                context.update(valid=foreground(theirs.logits, theirs.activation))
            both = (student[:, None], teacher[:, None])
            pairs.append(Pair('quality', *both, context))
        return pairs

    def _predictions(self, replayed: Replayed) -> list[tuple[Predictions, Predictions]]:
        # three sites read them
        if replayed.predictions is None:
            replayed.predictions = self._read_heads(replayed)
        return replayed.predictions

    def _read_heads(self, replayed: Replayed) -> list[tuple[Predictions, Predictions]]:
        found = []
        for path, head in zip(self.paths, self.heads):
            if not getattr(head, 'with_cls', True):
                # the first of a cascade of proposals only moves anchors
                continue
            names = output_names(head)
            if 'anchor_list' in names:
                names = ['features', *names[2:]]
            # what decodes boxes may be learned
            teacher = replayed.teacher
            other = head if teacher is None else teacher.get_submodule(path)
            for ours, theirs in replayed.of(f'{path}.forward'):
                found.append(
                    (
                        read_head(head, _named(names, ours)),
                        read_head(other, _named(names, theirs)),
                    )
                )
        return found


def _named(names: list[str], call: Call) -> dict[str, Any]:
    """Name what a head returned, with the mask of the text that it was given."""
    given = (*call.args, *call.kwargs.values())
    texts = [each for each in given if isinstance(each, dict) and 'masks' in each]
    text = dict(text_masks=texts[0]['masks']) if texts else {}
    return {**text, **dict(zip(names, call.output))}
