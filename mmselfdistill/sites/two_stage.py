"""Two-stage and cascade detectors: predictions for the student's RoIs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mmselfdistill.replay import Call

from .dense import foreground
from .family import Family, Pair, Reader, Replayed, stages


class TwoStageDetector(Family):
    """A detector with a ``roi_head`` of one stage or of a cascade.

    Both sides see the RoIs that the student sampled.

    Sites: ``features``, ``logits`` (one (RoIs, C + 1) a stage), ``boxes`` (one
    (RoIs, 4) a stage: of the teacher's likeliest object class, where each class
    has its own) and ``masks`` (one (positives, H, W) a stage: of the labelled
    class).
    """

    name = 'two-stage detector'

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
        names = ('_bbox_forward', '_mask_forward', 'semantic_head', 'glbctx_head')
        paths = ['extract_feat']
        for name in names:
            part = getattr(self.roi_head, name, None)
            if part is not None:
                call = '.forward' if isinstance(part, nn.Module) else ''
                paths.append(f'roi_head.{name}{call}')
        return paths

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
        readers['boxes'] = self._read_boxes
        if self.observed():
            readers['masks'] = self._read_masks
        return readers

    def default_terms(self) -> dict[str, dict[str, Any]]:
        """Return soft RoI labels, boxes of likely objects, masks, features."""
        terms = super().default_terms()
        terms['logits'] = dict(type='SoftTargetLoss', weight=1.0)
        terms['boxes'] = dict(type='BoxDistillLoss', weight=0.25)
        if self.observed():
            terms['masks'] = dict(type='MaskDistillLoss', weight=1.0)
        return terms

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        return [
            Pair(
                f'logits[{i}]',
                ours.output['cls_score'],
                theirs.output['cls_score'],
                dict(activation=self._activation(ours)),
            )
            for i, (ours, theirs) in enumerate(self._box_calls(replayed))
        ]

    def _read_boxes(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for i, (ours, theirs) in enumerate(self._box_calls(replayed)):
            student, teacher = ours.output['bbox_pred'], theirs.output['bbox_pred']
            if student is None:
                continue
            scores = theirs.output['cls_score']
            activation = self._activation(ours)
            best = likeliest_class(scores, student.shape[1] // 4)
            context = dict(confidence=foreground(scores, activation), box_kind='deltas')
            pairs.append(
                Pair(
                    f'boxes[{i}]',
                    of_class(student, best),
                    of_class(teacher, best),
                    context,
                )
            )
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

    def _box_calls(self, replayed: Replayed) -> list[tuple[Call, Call]]:
        return replayed.of('roi_head._bbox_forward')

    def _activation(self, call: Call) -> str:
        head = self.roi_head.bbox_head
        if isinstance(head, nn.ModuleList):
            head = head[call.kwargs.get('stage', (*call.args, 0)[0])]
        return 'sigmoid' if head.loss_cls.use_sigmoid else 'softmax'


def likeliest_class(scores: Tensor, boxes: int) -> Tensor:
    """Return the index (RoIs) of the box, of ``boxes`` a RoI, of the best class."""
    if boxes == 1:
        return scores.new_zeros(len(scores), dtype=torch.long)
    return scores[:, :boxes].argmax(1)


def of_class(boxes: Tensor, index: Tensor) -> Tensor:
    """Select one box of each RoI: (RoIs, 4 * classes) to (RoIs, 4)."""
    every = boxes.reshape(len(boxes), -1, 4)
    return every[torch.arange(len(boxes), device=boxes.device), index]


def mask_arguments(head: Any, call: Call) -> tuple[Tensor, list[Any]]:
    """Return the mask logits and the sampling results that a mask loss was given."""
    bound = inspect.signature(type(head).loss_and_target).bind(
        head, *call.args, **call.kwargs
    )
    return bound.arguments['mask_preds'], bound.arguments['sampling_results']
