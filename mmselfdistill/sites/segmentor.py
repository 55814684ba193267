"""Segmentors: class scores at every pixel."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from mmselfdistill.replay import tensors_in

from .family import Family, Pair, Reader, Replayed, labelled, stages

# how a head that refines points gets their features: two calls before its own
_POINT_STEPS = ('_get_fine_grained_point_feats', '_get_coarse_point_feats')


class Segmentor(Family):
    """A segmentor with a ``decode_head``, or a cascade of them.

    Auxiliary heads are left alone: they are no part of inference.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   stages of the backbone, or of the neck where there is one: PKD
    logits     (N, C, H, W) of each prediction that the heads train, at its own
               resolution; (N * points, C) of a head that refines the student's
               uncertain points. KL, binary where there is one channel; pixels
               with the ignored label do not count
    ========== ================================================================
    """

    name = 'segmentor'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.paths = stages(model, 'decode_head')
        self.heads: list[Any] = [model.get_submodule(path) for path in self.paths]

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model decodes pixels."""
        heads = [model.get_submodule(path) for path in stages(model, 'decode_head')]
        return super().matches(model) and any(hasattr(h, 'cls_seg') for h in heads)

    def seams(self) -> list[str]:
        """Return features, heads, and what heads of points sample."""
        steps = [
            f'{path}.{step}'
            for path, head in zip(self.paths, self.heads)
            for step in _POINT_STEPS
            if hasattr(head, step)
        ]
        return [*super().seams(), *steps]

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a segmentor."""
        if self.skipped():
            return super().readers()
        return {**super().readers(), 'logits': self._read_logits}

    def skipped(self) -> dict[str, str]:
        """Return heads that predict no classes."""
        return {
            path: 'it predicts depth, which has no scale to compare it by'
            for path, head in zip(self.paths, self.heads)
            if hasattr(head, 'max_depth')
        }

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for path, head in zip(self.paths, self.heads):
            # a cascade calls a stage again to feed the next one
            for ours, theirs in replayed.of(f'{path}.forward')[:1]:
                both = zip(tensors_in(ours.output), tensors_in(theirs.output))
                for student, teacher in both:
                    if student.dim() > 2 and student.shape[1] == head.out_channels:
                        name = f'logits[{len(pairs)}]'
                        pairs.append(_pair(name, student, teacher, head, replayed))
        return pairs


def _pair(
    name: str, student: Tensor, teacher: Tensor, head: Any, replayed: Replayed
) -> Pair:
    activation = 'sigmoid' if head.out_channels == 1 else 'softmax'
    context: dict[str, Any] = dict(activation=activation)
    if student.dim() == 3:
        student, teacher = _points(student), _points(teacher)
    else:
        size, ignored = student.shape[2:], head.ignore_index
        context.update(valid=labelled(replayed.data_samples, size, ignored))
    return Pair(name, student, teacher, context)


def _points(logits: Tensor) -> Tensor:
    """Return (N, C, points) as (N * points, C)."""
    return logits.transpose(1, 2).flatten(0, 1)
