"""Segmentors: class scores at every pixel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmselfdistill.containers import tensors_in

from .plan import Family, Plan, Reading, Rows, Seam, Side, Site, argument
from .shared import (
    decoded,
    feature_seam,
    features,
    head_seams,
    labelled,
    rows_of_pixels,
    seams,
    stages,
)

# how a head that refines points gets their features: two calls before its own
_POINT_STEPS = ('_get_fine_grained_point_feats', '_get_coarse_point_feats')


class Segmentor(Family):
    """A segmentor with a ``decode_head``, or a cascade of them.

    Auxiliary heads are left alone: they are no part of inference.

    ========== ================================================================
    site       what, and the default loss
    ========== ================================================================
    features   stages of the backbone, or of the neck where there is one: PKD. Only
               on images with labels, as the logits
    logits     (N, C, H, W) of each output of a head with as many channels as there
               are classes, at its own resolution; (N * points, C) of a head that
               refines the student's uncertain points. KL, where the head trains
               sigmoids the mean of each class's; pixels and points with the
               ignored label do not count
    pseudo_    the same on images without labels, where all pixels and points
    labels     count: the teacher's class, where it is sure; a confidence weighs
               pixels, and no points
    ========== ================================================================
    """

    name = 'segmentor'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model decodes pixels."""
        heads = [model.get_submodule(path) for path in stages(model, 'decode_head')]
        decodes = any(hasattr(head, 'cls_seg') for head in heads)
        return bool(feature_seam(model)) and decodes

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features, heads, and what heads of points sample are recorded."""
        heads = {p: model.get_submodule(p) for p in stages(model, 'decode_head')}
        of_points = [path for path, h in heads.items() if hasattr(h, _POINT_STEPS[0])]
        steps = [f'{path}.{step}' for path in of_points for step in _POINT_STEPS]
        # its loss is where the places of the points are seen
        observed = [Seam(f'{path}.loss_by_feat', repeat=False) for path in of_points]
        depths = [path for path, head in heads.items() if hasattr(head, 'max_depth')]
        auxiliary = stages(model, 'auxiliary_head')
        maps = features(model)
        sites = (maps,) if depths else (_labeled(maps), *_logits(heads))
        no_scale = 'it predicts depth, which has no scale to compare it by'
        return Plan(
            cls.name,
            (*seams(feature_seam(model), *head_seams(model), *steps), *observed),
            sites,
            skipped={
                **dict.fromkeys(depths, no_scale),
                **dict.fromkeys(auxiliary, 'it is no part of inference'),
            },
            run=decoded if of_points else None,
            # by running statistics, a weak teacher drew a DeepLabV3+ to the background
            teacher_norm='batch',
        )


def _logits(heads: dict[str, Any]) -> list[Site]:
    points = {
        path: argument(head.loss_by_feat, 'points')
        for path, head in heads.items()
        if hasattr(head, _POINT_STEPS[0])
    }

    def found(side: Side) -> list[tuple[str, Tensor]]:
        return [
            (path, logits)
            for path, head in heads.items()
            # a cascade calls a stage again to feed the next one
            for call in side.of(f'{path}.forward')[:1]
            for logits in tensors_in(call.output)
            # of two classes in one channel, some heads make two all the same (DANet)
            if logits.dim() > 2
            and logits.shape[1] in (head.out_channels, head.num_classes)
        ]

    def read(side: Side) -> list[Reading]:
        return [Reading(_rows(x), _kind(heads[path])) for path, x in found(side)]

    def weigh(side: Side) -> list[Rows]:
        weighed = []
        for path, logits in found(side):
            head, kind = heads[path], _kind(heads[path])
            if logits.dim() == 4:
                rows = rows_of_pixels(side, logits, kind, head.ignore_index)
            else:
                rows = Rows(weight=_of_points(path, head, points[path], side))
            many = kind == 'sigmoid' and logits.shape[1] > 1
            weighed.append(_over_classes(rows, logits) if many else rows)
        return weighed

    observed = [f'{path}.loss_by_feat' for path in points]
    paths = (*(f'{path}.forward' for path in heads), *observed)
    soft = dict(type='SoftTargetLoss', weight=1.0)
    logits = Site('logits', paths, read, weigh, soft, by_confidence=True)
    hard = dict(type='PseudoLabelLoss', weight=4.0, on='unlabeled')
    return [_labeled(logits), replace(logits, name='pseudo_labels', default=hard)]


def _labeled(site: Site) -> Site:
    # without labels, soft targets and features hold a segmentor back
    return replace(site, default={**(site.default or {}), 'on': 'labeled'})


def _of_points(path: str, head: Any, places: Any, side: Side) -> Tensor | None:
    """Return 1 where a point has a label: (N * points)."""
    samples = side.samples
    if samples is None:
        return None
    (call,) = side.of(f'{path}.loss_by_feat')
    labels = labelled(samples, samples[0].gt_sem_seg.shape, head.ignore_index)
    grid = 2 * places(call)[:, :, None] - 1
    sample = partial(F.grid_sample, mode='nearest', align_corners=head.align_corners)
    found: Tensor = sample(labels[:, None], grid)
    return found.flatten()


def _over_classes(rows: Rows, logits: Tensor) -> Rows:
    """Average over classes too: so does a head's own loss that is a sigmoid of each."""
    norm = rows.norm
    if norm is None:
        places = logits.numel() // logits.shape[1]
        every = torch.full((), float(places), device=logits.device)
        norm = every if rows.weight is None else rows.weight.sum()
    return replace(rows, norm=logits.shape[1] * norm)


def _kind(head: Any) -> str:
    """Say how the losses of a head turn class scores into probabilities.

    They may be exchanged during a run.

    A cross-entropy decides where there is one: a Dice takes sigmoids of either. Losses
    that do not say so (Lovasz, Tversky) are of a softmax.
    """
    # K-Net's are those of the heads inside it; a scene's classes have a loss of another
    # name (EncNet)
    found = [getattr(m, 'loss_decode', None) for m in head.modules()]
    losses = [loss for each in found for loss in _listed(each)]
    entropies = [m for m in losses if 'CrossEntropy' in type(m).__name__]
    others = [m for m in losses if 'Dice' not in type(m).__name__]
    deciding = entropies or others or losses
    sigmoid = deciding and all(getattr(m, 'use_sigmoid', False) for m in deciding)
    return 'sigmoid' if sigmoid or head.out_channels == 1 else 'softmax'


def _listed(losses: nn.Module | None) -> list[nn.Module]:
    if losses is None:
        return []
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def _rows(logits: Tensor) -> Tensor:
    """Return (N, C, H, W) as it is, and (N, C, points) as (N * points, C)."""
    return logits if logits.dim() == 4 else logits.transpose(1, 2).flatten(0, 1)
