"""Single-stage detectors: predictions at every position of a feature pyramid."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .family import Family, Pair, Reader, Replayed

_SEAM = 'bbox_head.forward'


class DenseDetector(Family):
    """A detector whose ``bbox_head`` returns class scores and boxes per level.

    The head's ``loss_by_feat`` names what its ``forward`` returns, in the same
    order: ``cls_scores``, ``bbox_preds`` and others.

    Sites: ``features``, ``logits`` (all anchors of all levels and images as
    (N, C)), ``boxes`` (likewise (N, 4) or, of a head that predicts
    distributions, (N, 4 * bins)).
    """

    name = 'single-stage detector'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head: Any = model.bbox_head
        self.outputs = output_names(self.head)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has a dense ``bbox_head`` of its own."""
        head = getattr(model, 'bbox_head', None)
        return (
            super().matches(model)
            and not hasattr(model, 'roi_head')
            and hasattr(head, 'loss_by_feat')
            and 'cls_scores' in output_names(head)
        )

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a dense head."""
        readers = super().readers()
        readers['logits'] = self._read_logits
        if 'bbox_preds' in self.outputs:
            readers['boxes'] = self._read_boxes
        return readers

    def default_terms(self) -> dict[str, dict[str, Any]]:
        """Return quality-focal logits, boxes by confidence, light features."""
        terms = super().default_terms()
        terms['logits'] = dict(type='SoftTargetLoss', weight=1.0, beta=1.0)
        if 'bbox_preds' in self.outputs:
            terms['boxes'] = dict(type='BoxDistillLoss', weight=0.25)
        return terms

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        context = dict(activation=self._activation(), average_over='positives')
        return [
            Pair(
                'logits',
                self._rows(ours['cls_scores']),
                self._rows(theirs['cls_scores']),
                context,
            )
            for ours, theirs in self._named(replayed)
        ]

    def _read_boxes(self, replayed: Replayed) -> list[Pair]:
        pairs = []
        for ours, theirs in self._named(replayed):
            student = self._box_rows(ours)
            context = dict(
                confidence=self._confidence(theirs),
                box_kind=self._box_kind(student.shape[1]),
            )
            pairs.append(Pair('boxes', student, self._box_rows(theirs), context))
        return pairs

    def _named(self, replayed: Replayed) -> list[Any]:
        return [
            (dict(zip(self.outputs, s.output)), dict(zip(self.outputs, t.output)))
            for s, t in replayed.of(_SEAM)
        ]

    def _activation(self) -> str:
        sigmoid = getattr(self.head, 'use_sigmoid_cls', None)
        if sigmoid is None:
            sigmoid = getattr(self.head.loss_cls, 'use_sigmoid', False)
        return 'sigmoid' if sigmoid else 'softmax'

    def _rows(self, levels: list[Tensor]) -> Tensor:
        return rows(levels, self.head.cls_out_channels)

    def _box_rows(self, outputs: dict[str, list[Tensor]]) -> Tensor:
        """Return one row an anchor, in the order of the rows of logits."""
        anchors = outputs['cls_scores'][0].shape[1] // self.head.cls_out_channels
        boxes = outputs['bbox_preds']
        return rows(boxes, boxes[0].shape[1] // anchors)

    def _confidence(self, outputs: dict[str, list[Tensor]]) -> Tensor:
        scores = foreground(self._rows(outputs['cls_scores']), self._activation())
        for name in ('objectnesses', 'centernesses'):
            if name in outputs:
                scores = scores * rows(outputs[name], 1).float().sigmoid()[:, 0]
        return scores

    def _box_kind(self, columns: int) -> str:
        if columns > 4:
            return 'bins'
        coder = type(getattr(self.head, 'bbox_coder', None)).__name__
        return 'distances' if coder == 'DistancePointBBoxCoder' else 'deltas'


def output_names(head: Any) -> list[str]:
    """Return the names of what a head's ``forward`` returns."""
    return list(inspect.signature(head.loss_by_feat).parameters)


def rows(levels: list[Tensor], columns: int) -> Tensor:
    """Join levels of (N, A * columns, H, W) into one (N * A * H * W, columns)."""
    flat = [level.permute(0, 2, 3, 1).reshape(-1, columns) for level in levels]
    return torch.cat(flat)


def foreground(logits: Tensor, activation: str) -> Tensor:
    """Return the probability (N) that a row of (N, C) is any object.

    The largest class of a sigmoid head; one minus the background, the last
    class, of a softmax head.
    """
    logits = logits.float()
    if activation == 'sigmoid':
        return logits.amax(1).sigmoid()
    return 1 - logits.softmax(1)[:, -1]
