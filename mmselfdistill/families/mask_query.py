"""Models that classify masks: each of a set of queries is a mask and its class."""

from __future__ import annotations

from typing import Any, Sequence

from torch import Tensor, nn

from .plan import Family, Plan, Reading, Rows, Side, Site, parameters_of
from .query import ON_LABELS
from .shared import (
    decoded,
    feature_seam,
    features,
    foreground,
    head_seams,
    output_names,
    over_objects,
    seams,
    stages,
)

_QUERIES = ('query_embed', 'query_feat', 'query_pos_embed')
_MASK_HEADS = ('panoptic_head', 'track_head', 'decode_head')


class MaskClassifier(Family):
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

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model has a head that classifies masks."""
        return bool(feature_seam(model)) and bool(_mask_head(model))

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how features and heads are recorded and read."""
        path = _mask_head(model)
        head = model.get_submodule(path)
        # SAN's queries are parameters, of a network inside its head
        parts = [name for name, _ in head.named_modules()]
        parts += [name for name, _ in head.named_parameters()]
        queries = [part for part in parts if part.rpartition('.')[2] in _QUERIES]
        run = _runner(model, head)
        # as a whole where it runs like that: SAN resizes the image before its encoder
        whole = ['encode_decode'] if run is decoded else []
        return Plan(
            cls.name,
            seams(*whole, feature_seam(model), *head_seams(model)),
            (features(model), *_sites(f'{path}.forward')),
            shared=tuple(f'{path}.{part}' for part in queries),
            skipped={'decoder layers but the last': ON_LABELS},
            run=run,
        )


def _runner(model: nn.Module, head: nn.Module) -> Any:
    """Return what runs a model of MMSegmentation: its own way gives too little."""
    if not hasattr(model, 'encode_decode'):
        return None
    takes = 'batch_data_samples' in parameters_of(head.forward)
    return _with_samples if takes else decoded


def _with_samples(model: Any, inputs: Tensor, samples: Sequence[Any]) -> Any:
    return model.decode_head(model.extract_feat(inputs), samples)


def _sites(seam: str) -> tuple[Site, Site]:
    def last(side: Side) -> list[tuple[Tensor, Tensor]]:
        return [_last_two(call.output) for call in side.of(seam)]

    def read_logits(side: Side) -> list[Reading]:
        return [Reading(logits, 'softmax') for logits, _ in last(side)]

    def read_masks(side: Side) -> list[Reading]:
        return [Reading(masks, 'mask') for _, masks in last(side)]

    def weigh_masks(side: Side) -> list[Rows]:
        return [Rows(weight=foreground(logits, 'softmax')) for logits, _ in last(side)]

    logits = dict(type='SoftTargetLoss', weight=0.5)
    masks = dict(type='MaskDistillLoss', weight=0.5)
    return (
        Site('logits', (seam,), read_logits, over_objects(read_logits), logits),
        Site('masks', (seam,), read_masks, weigh_masks, masks),
    )


def _mask_head(model: nn.Module) -> str:
    for name in _MASK_HEADS:
        for path in stages(model, name):
            if 'all_mask_preds' in output_names(model.get_submodule(path)):
                return path
    return ''


def _last_two(output: Any) -> tuple[Tensor, Tensor]:
    """Return logits and masks of the last layer, (N * queries, ...) each.

    SAN returns the masks first.
    """
    logits, masks = sorted((output[0][-1], output[1][-1]), key=Tensor.dim)
    return logits.flatten(0, 1), masks.flatten(0, 1)
