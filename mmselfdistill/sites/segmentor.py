"""Segmentors: class scores at every pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
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
               uncertain points. KL, binary where the head trains sigmoids;
               pixels and points with the ignored label do not count
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
        # it looks at every module of a head: once, not in each iteration
        self.activations = [_activation(head) for head in self.heads]

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

    def observed(self) -> list[str]:
        """Return where the places of the points are seen: their loss."""
        heads = zip(self.paths, self.heads)
        return [
            f'{path}.loss_by_feat' for path, h in heads if hasattr(h, _POINT_STEPS[0])
        ]

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a segmentor."""
        if self._depths():
            return super().readers()
        return {**super().readers(), 'logits': self._read_logits}

    def skipped(self) -> dict[str, str]:
        """Return heads that predict no classes, or none that inference uses."""
        why = 'it predicts depth, which has no scale to compare it by'
        found = dict.fromkeys(self._depths(), why)
        auxiliary = stages(self.model, 'auxiliary_head')
        return {**found, **dict.fromkeys(auxiliary, 'it is no part of inference')}

    def _depths(self) -> list[str]:
        heads = zip(self.paths, self.heads)
        return [path for path, head in heads if hasattr(head, 'max_depth')]

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        heads = zip(self.paths, self.heads, self.activations)
        for path, head, activation in heads:
            # a cascade calls a stage again to feed the next one
            for ours, theirs in replayed.of(f'{path}.forward')[:1]:
                outputs = zip(tensors_in(ours.output), tensors_in(theirs.output))
                for student, teacher in outputs:
                    if student.dim() > 2 and student.shape[1] == head.out_channels:
                        name = f'logits[{len(pairs)}]'
                        valid = self._valid(path, head, student, replayed)
                        context = dict(activation=activation, valid=valid)
                        both = (_rows(student), _rows(teacher))
                        pairs.append(Pair(name, *both, context))
        return pairs

    def _valid(
        self, path: str, head: Any, logits: Tensor, replayed: Replayed
    ) -> Tensor:
        """Return 1 where there is a label: (N, H, W), or (N * points)."""
        samples, ignored = replayed.data_samples, head.ignore_index
        if logits.dim() == 4:
            return labelled(samples, logits.shape[2:], ignored)
        ((call, _),) = replayed.of(f'{path}.loss_by_feat')
        points = call.kwargs.get('points', (*call.args, None, None)[1])
        labels = labelled(samples, samples[0].gt_sem_seg.shape, ignored)
        grid = 2 * points[:, :, None] - 1
        align = head.align_corners
        found = F.grid_sample(labels[:, None], grid, 'nearest', align_corners=align)
        return found.flatten()


def _activation(head: Any) -> str:
    """Say what the losses of the classes train: a Dice takes sigmoids of either."""
    # K-Net's are those of the heads inside it
    losses = [m for m in head.modules() if 'CrossEntropy' in type(m).__name__]
    sigmoid = losses and all(getattr(m, 'use_sigmoid', False) for m in losses)
    return 'sigmoid' if sigmoid or head.out_channels == 1 else 'softmax'


def _rows(logits: Tensor) -> Tensor:
    """Return (N, C, H, W) as it is, and (N, C, points) as (N * points, C)."""
    return logits if logits.dim() == 4 else logits.transpose(1, 2).flatten(0, 1)
