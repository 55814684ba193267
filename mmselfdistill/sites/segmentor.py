"""Segmentors: class scores at every pixel."""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmselfdistill.replay import tensors_in

from .family import Family, Pair, Reader, Replayed, stages


class Segmentor(Family):
    """A segmentor with a ``decode_head``, or a cascade of them.

    Auxiliary heads are left alone: they are no part of inference.

    Sites: ``features`` (the stages of the backbone, or of the neck where there
    is one) and ``logits`` ((N, C, H, W) at the head's own resolution; pixels
    with the ignored label do not count).
    """

    name = 'segmentor'

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model decodes pixels."""
        heads = [model.get_submodule(path) for path in stages(model, 'decode_head')]
        return super().matches(model) and any(hasattr(h, 'cls_seg') for h in heads)

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a segmentor."""
        return {**super().readers(), 'logits': self._read_logits}

    def default_terms(self) -> dict[str, dict[str, Any]]:
        """Return soft labels of pixels, and light features."""
        logits = dict(type='SoftTargetLoss', weight=1.0)
        return {**super().default_terms(), 'logits': logits}

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        pairs: list[Pair] = []
        for path in stages(self.model, 'decode_head'):
            head: Any = self.model.get_submodule(path)
            for ours, theirs in replayed.of(f'{path}.forward'):
                both = zip(tensors_in(ours.output), tensors_in(theirs.output))
                for student, teacher in both:
                    if student.dim() == 4 and student.shape[1] == head.out_channels:
                        size = student.shape[2:]
                        context = dict(
                            activation='sigmoid'
                            if head.out_channels == 1
                            else 'softmax',
                            valid=labelled(
                                replayed.data_samples, size, head.ignore_index
                            ),
                        )
                        name = f'logits[{len(pairs)}]'
                        pairs.append(Pair(name, student, teacher, context))
        return pairs


def labelled(data_samples: Sequence[Any], size: Sequence[int], ignore: int) -> Tensor:
    """Say which pixels have a label, at a head's resolution: (N, H, W)."""
    labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
    nearest = F.interpolate(
        (labels != ignore).float(), size=tuple(size), mode='nearest'
    )
    return nearest[:, 0]
