"""Detectors that decode a set of queries."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any, Sequence

import torch
from torch import Tensor, nn

from .plan import Family, Plan, Reading, Rows, Seam, Side, Site, parameters_of
from .shared import (
    as_sides,
    feature_seam,
    features,
    foreground,
    head_seams,
    kind_of,
    output_names,
    seams,
    text_seams,
    unread_heads,
)

ON_LABELS = 'they train on the labels alone'
# Chosen by the student: they have no order that two models would agree on.
_CHOSEN = ('query', 'query_pos', 'reference_points')
LOGITS = dict(type='SoftTargetLoss', weight=0.5, beta=1.0)
BOXES = dict(type='BoxDistillLoss', weight=0.5)


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

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model's ``bbox_head`` predicts after each decoder layer."""
        return bool(feature_seam(model)) and has_layers(model, 'bbox_head')

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how the steps are recorded but the one that chooses queries."""
        names = ('pre_transformer', 'forward_encoder', 'forward_decoder')
        steps = [Seam(name, keep=_CHOSEN) for name in names if hasattr(model, name)]
        inputs = parameters_of(model.get_submodule('bbox_head').forward)
        return Plan(
            cls.name,
            (
                *seams(feature_seam(model), *text_seams(model)),
                *steps,
                *seams(*head_seams(model)),
            ),
            (features(model), *query_sites(model, 'bbox_head', 'num_queries')),
            skipped=skipped(model),
            run=partial(_decoded, inputs),
        )


def _decoded(
    wanted: Sequence[str], model: Any, inputs: Tensor, samples: Sequence[Any]
) -> Any:
    """Run a model up to its predictions: its own way gives the head too much."""
    found = model.forward_transformer(model.extract_feat(inputs), samples)
    return model.bbox_head(**{k: v for k, v in found.items() if k in wanted})


def has_layers(model: nn.Module, path: str) -> bool:
    """Say whether a head predicts after each layer of a decoder."""
    return 'all_layers_cls_scores' in output_names(getattr(model, path, None))


def skipped(model: nn.Module) -> dict[str, str]:
    """Return the predictions that are not compared."""
    found = {'decoder layers but the last': ON_LABELS}
    parts = [path.rpartition('.')[2] for path, _ in model.named_modules()]
    if {'dn_query_generator', 'dn_generator'} & {*parts}:
        found['denoising queries'] = 'they are given what to answer'
    if hasattr(model, 'dense_topk_ratio'):
        found['dense queries'] = 'they help in training, on the labels alone'
    return found


def query_sites(model: nn.Module, path: str, queries: str) -> tuple[Site, Site]:
    """Return the sites of the last decoder layer.

    Args:
        model (nn.Module): The model.
        path (str): Of the head.
        queries (str): Dotted name of the model's number of matching queries.
    """
    seam, head = f'{path}.forward', model.get_submodule(path)

    def last(side: Side, output: int) -> list[Tensor]:
        """Return the matching queries of the last layer: (N * queries, C)."""
        count = int(attrgetter(queries)(side.model))
        # DDQ has dense queries after them
        end = -getattr(side.model, 'cache_dict', {}).get('num_dense_queries', 0) or None
        layers = [call.output[output][-1][:, :end] for call in side.of(seam)]
        return [layer[:, -count:].flatten(0, 1) for layer in layers]

    def read_logits(side: Side) -> list[Reading]:
        return [Reading(logits, kind_of(head)) for logits in last(side, 0)]

    def read_boxes(side: Side) -> list[Reading]:
        return [
            reading
            for boxes in last(side, 1)
            for reading in (Reading(boxes, 'cxcywh'), Reading(_sides(boxes), 'sides'))
        ]

    def objects(side: Side) -> list[Tensor]:
        kept = _distinct(side.model)
        sure = [foreground(logits, kind_of(head)) for logits in last(side, 0)]
        return sure if kept is None else [kept * each for each in sure]

    def weigh_logits(side: Side) -> list[Rows]:
        kept = _distinct(side.model)
        return [Rows(weight=kept, norm=each.sum()) for each in objects(side)]

    def weigh_boxes(side: Side) -> list[Rows]:
        return [rows for each in objects(side) for rows in [Rows(weight=each)] * 2]

    return (
        Site('logits', (seam,), read_logits, weigh_logits, LOGITS),
        Site('boxes', (seam,), read_boxes, weigh_boxes, BOXES),
    )


def _distinct(model: Any) -> Tensor | None:
    """Return 1 of each matching query (N * queries) that DDQ keeps, 0 of the others.

    Its loss and its predictions leave out those that are too near to a surer one.
    """
    cache = getattr(model, 'cache_dict', {})
    # of the queries that go into each layer but the first, for each head of attention
    masks = cache.get('distinct_query_mask')
    if not masks:
        return None
    kept: Tensor = masks[-1][:: cache['num_heads'], 0]
    return kept.flatten().float()


def _sides(boxes: Tensor) -> Tensor:
    centre, size = boxes[:, :2], boxes[:, 2:]
    return as_sides(torch.cat([centre - size / 2, centre + size / 2], 1))


class CollaborativeDetector(Family):
    """A Co-DETR (arXiv 2211.12860): a ``query_head`` with a transformer in it.

    The head chooses its queries inside of one call, from what its encoder returned.
    The teacher repeats that call, with the student's queries for its decoder, and the
    boxes at which they begin. Sites and default losses are those of
    :class:`QueryDetector`.
    """

    name = 'collaborative query detector'

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a ``query_head`` predicts after each layer of its decoder."""
        transformer = getattr(getattr(model, 'query_head', None), 'transformer', None)
        matching = feature_seam(model) and has_layers(model, 'query_head')
        return bool(matching) and hasattr(transformer, 'decoder')

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how the features and the whole ``query_head`` are recorded."""
        decoder = 'query_head.transformer.decoder.forward'
        others = unread_heads(model, ['query_head'])
        inputs = parameters_of(model.get_submodule('query_head').forward)
        why = 'it helps in training, on the labels alone'
        return Plan(
            cls.name,
            (
                *seams(feature_seam(model)),
                # besides the features: denoising queries, which are made before it
                Seam('query_head.forward', keep=tuple(inputs[1:])),
                Seam(decoder, keep=('query', 'reference_points')),
            ),
            (
                features(model),
                *query_sites(model, 'query_head', 'query_head.num_query'),
            ),
            skipped={**skipped(model), **dict.fromkeys(others, why)},
        )
