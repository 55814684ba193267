"""Detectors and segmentors that decode a set of queries."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .family import (
    Family,
    Pair,
    Reader,
    Replayed,
    head_seams,
    output_names,
    stages,
    text_seams,
)
from .predictions import activation_of, corners_as_distances, foreground

_ON_LABELS = 'they train on the labels alone'


class QueryDetector(Family):
    """A DETR: an encoder and a decoder between features and ``bbox_head``.

    Both sides decode the queries that the student chose, so that a query is the
    same one on both; of the last decoder layer the matching queries are
    compared, not the denoising ones, whose answer is known, nor the dense ones
    of DDQ. Plain mimicry of queries lost accuracy (arXiv 2410.13842): weights
    are small.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   neck, one (N, C, H, W) a level: PKD
    logits     (N * queries, C): quality-focal KL of sigmoid heads, KL of
               softmax heads, over the teacher's positives
    boxes      (N * queries, 4) by the teacher's confidence: L1 of centre and
               size in parts of the image, and GIoU
    ========== ================================================================
    """

    name = 'query detector'
    path = 'bbox_head'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=0.5, beta=1.0),
        'boxes': dict(type='BoxDistillLoss', weight=0.5),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head: Any = getattr(model, self.path)
        # DDQ gives its decoder these branches in a step that is not repeated;
        # a plain entry keeps the keys of the state_dict as they are
        if hasattr(self.head, 'aux_reg_branches'):
            decoder: Any = model.decoder
            if not hasattr(decoder, 'aux_reg_branches'):
                vars(decoder)['aux_reg_branches'] = self.head.aux_reg_branches

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model's ``bbox_head`` predicts after each decoder layer."""
        names = output_names(getattr(model, cls.path, None))
        return super().matches(model) and 'all_layers_cls_scores' in names

    def seams(self) -> list[str]:
        """Return the steps of the transformer but the one that chooses queries."""
        names = ('pre_transformer', 'forward_encoder', 'forward_decoder')
        steps = [name for name in names if hasattr(self.model, name)]
        text = text_seams(self.model)
        return [self.features, *text, *steps, *head_seams(self.model)]

    def state(self) -> dict[str, str]:
        """Return where DDQ keeps the numbers of its queries."""
        if hasattr(self.model, 'cache_dict'):
            return {'forward_decoder': 'cache_dict'}
        return {}

    def readers(self) -> dict[str, Reader]:
        """Return the sites of the last decoder layer."""
        readers = dict(logits=self._read_logits, boxes=self._read_boxes)
        return {**super().readers(), **readers}

    def skipped(self) -> dict[str, str]:
        """Return the predictions that are not compared."""
        found = {'decoder layers but the last': _ON_LABELS}
        parts = [path.rpartition('.')[2] for path, _ in self.model.named_modules()]
        if {'dn_query_generator', 'dn_generator'} & {*parts}:
            found['denoising queries'] = 'they are given what to answer'
        if hasattr(self.model, 'dense_topk_ratio'):
            found['dense queries'] = 'they help in training, on the labels alone'
        return found

    def queries(self) -> int:
        """Return the number of matching queries."""
        count: Any = self.model.num_queries
        return int(count)

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        activation = activation_of(self.head)
        context = dict(activation=activation, average_over='positives')
        return [
            Pair(
                'logits',
                self._last(ours.output[0]),
                self._last(theirs.output[0]),
                context,
            )
            for ours, theirs in replayed.of(f'{self.path}.forward')
        ]

    def _read_boxes(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in replayed.of(f'{self.path}.forward'):
            logits = self._last(theirs.output[0])
            sure = foreground(logits, activation_of(self.head))
            student, teacher = self._last(ours.output[1]), self._last(theirs.output[1])
            places = dict(confidence=sure, box_kind='deltas')
            overlap = dict(confidence=sure, box_kind='distances')
            pairs += [
                Pair('centre and size', student, teacher, places),
                Pair('sides', _sides(student), _sides(teacher), overlap),
            ]
        return pairs

    def _last(self, layers: Any) -> Tensor:
        """Return the matching queries of the last layer: (N * queries, C)."""
        queries: Tensor = layers[-1]
        told = getattr(self.model, 'cache_dict', {})
        dense = told.get('num_dense_queries', 0)
        end = queries.shape[1] - dense
        return queries[:, end - self.queries() : end].flatten(0, 1)


def _sides(boxes: Tensor) -> Tensor:
    centre, size = boxes[:, :2], boxes[:, 2:]
    return corners_as_distances(torch.cat([centre - size / 2, centre + size / 2], 1))


_QUERIES = ('query_embed', 'query_feat', 'query_pos_embed')
_MASK_HEADS = ('panoptic_head', 'track_head', 'decode_head')


class QuerySegmentor(Family):
    """A model that classifies masks: MaskFormer, Mask2Former, SAN, of both zoos.

    The queries are learned; both sides use the student's. Of the last decoder
    layer are compared:

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   neck or backbone, one (N, C, H, W) a level: PKD
    logits     (N * queries, C + 1): KL over the teacher's positives
    masks      (N * queries, H, W), of a video with its frames: binary KL,
               weighted by the teacher's probability of an object
    ========== ================================================================
    """

    name = 'mask classifier'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=0.5),
        'masks': dict(type='MaskDistillLoss', weight=0.5),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.path = str(_mask_head(model))

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has a head that classifies masks."""
        return super().matches(model) and _mask_head(model) is not None

    def shared(self) -> list[str]:
        """Return the learned queries."""
        head = self.model.get_submodule(self.path)
        # SAN's are parameters, of a network inside its head
        paths = [name for name, _ in head.named_modules()]
        paths += [name for name, _ in head.named_parameters()]
        found = [path for path in paths if path.rpartition('.')[2] in _QUERIES]
        return [f'{self.path}.{path}' for path in found]

    def readers(self) -> dict[str, Reader]:
        """Return the sites of the last decoder layer."""
        readers = dict(logits=self._read_logits, masks=self._read_masks)
        return {**super().readers(), **readers}

    def skipped(self) -> dict[str, str]:
        """Return the predictions that are not compared."""
        return {'decoder layers but the last': _ON_LABELS}

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        context = dict(activation='softmax', average_over='positives')
        return [
            Pair(
                'logits',
                _last_two(ours.output)[0],
                _last_two(theirs.output)[0],
                context,
            )
            for ours, theirs in replayed.of(f'{self.path}.forward')
        ]

    def _read_masks(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in replayed.of(f'{self.path}.forward'):
            logits, teacher = _last_two(theirs.output)
            context = dict(confidence=foreground(logits, 'softmax'))
            pairs.append(Pair('masks', _last_two(ours.output)[1], teacher, context))
        return pairs


def _mask_head(model: nn.Module) -> str | None:
    for name in _MASK_HEADS:
        for path in stages(model, name):
            if 'all_mask_preds' in output_names(model.get_submodule(path)):
                return path
    return None


def _last_two(output: Any) -> tuple[Tensor, Tensor]:
    """Return logits and masks of the last layer, (N * queries, ...) each.

    SAN returns the masks first.
    """
    logits, masks = sorted((output[0][-1], output[1][-1]), key=Tensor.dim)
    return logits.flatten(0, 1), masks.flatten(0, 1)
