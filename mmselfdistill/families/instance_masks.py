"""Instance masks of single-stage detectors, however the head makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, cast

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from .cell_masks import (
    MASK_TERM,
    Level,
    by_cell,
    masks_of_cells,
    places_of,
    weights_inside,
)
from .plan import Reading, Rows, Seam, Side, Site, argument
from .shared import as_logits, output_names


@dataclass(frozen=True)
class Masks:
    """The masks of a dense detector.

    Args:
        sites (tuple[Site, ...]): Where they are read. Defaults to (): it has none.
        seams (tuple[Seam, ...]): What is recorded for it besides. Defaults to ().
        run (Callable, optional): See :class:`Plan`. Defaults to None.
    """

    sites: tuple[Site, ...] = ()
    seams: tuple[Seam, ...] = ()
    run: Callable[[Any, Tensor, Any], Any] | None = None


def masks_of(model: Any) -> Masks:
    """Return how the masks of a model with a dense ``bbox_head`` are read."""
    if 'positive_infos' in output_names(getattr(model, 'mask_head', None)):
        return _masks_of_positives(model)
    if 'kernel_preds' in output_names(model.bbox_head):
        return Masks((masks_of_cells('bbox_head', model.bbox_head),))
    return Masks()


def _masks_of_positives(model: Any) -> Masks:
    """CondInst, BoxInst, YOLACT: the positives of the box head have masks.

    Without labels there are no positives: the teacher chooses, as of a head that has a
    mask for each cell.
    """
    prototypes = hasattr(model.mask_head, 'protonet')
    part = 'protonet' if prototypes else 'mask_feature_head'
    base = f'mask_head.{part}.forward'

    def run(model: Any, inputs: Tensor, samples: Any) -> None:
        features = model.extract_feat(inputs)
        model.bbox_head(features)
        getattr(model.mask_head, part)(features[0] if prototypes else features)

    def levels(side: Side) -> list[Level]:
        both = zip(side.of('bbox_head.forward'), side.of(base))
        return [
            level
            for boxes, bases in both
            for level in dynamic(side, names, boxes.output, bases.output)
        ]

    names = output_names(model.bbox_head)
    dynamic = _of_prototypes if prototypes else _of_parameters
    site = Site(
        'masks',
        ('mask_head.forward',),
        partial(_read_positives, prototypes),
        _weigh_crops if prototypes else None,
        default=MASK_TERM,
        unlabeled=masks_of_cells('bbox_head', model.bbox_head, (base,), levels),
    )
    # between the box head and the mask head, which is given its positives
    positives = Seam('bbox_head.get_positive_infos')
    return Masks((site,), (positives, Seam(base)), run)


def _of_prototypes(
    side: Side, names: list[str], boxes: Any, prototypes: Tensor
) -> list[Level]:
    """YOLACT: each anchor's coefficients combine the prototypes of its image."""
    outputs = dict(zip(names, boxes))
    head: Any = side.model.get_submodule('bbox_head')

    def masks(coefficients: Tensor, image: int, cells: Tensor) -> Tensor:
        chosen = by_cell(coefficients, head.num_protos)[image, cells]
        return torch.einsum('nk,khw->nhw', chosen, prototypes[image])

    def inside(level: int, deltas: Tensor, cells: Tensor) -> Tensor:
        anchors = head.prior_generator.single_level_grid_priors(
            deltas.shape[2:], level, device=deltas.device
        )
        decoded = [
            head.bbox_coder.decode(anchors[of], image[of], max_shape=meta['img_shape'])
            for of, image, meta in zip(cells, by_cell(deltas, 4), side.metas)
        ]
        ones = prototypes.new_ones((*prototypes.shape[2:], cells.shape[1]))
        infos = [InstanceData(bboxes=each) for each in decoded]
        mask_head: Any = side.model.get_submodule('mask_head')
        cut = mask_head.crop_mask_preds([ones] * len(infos), side.metas, infos)
        return torch.cat(cut)

    levels = zip(outputs['cls_scores'], outputs['coeff_preds'], outputs['bbox_preds'])
    return [
        Level(logits, partial(masks, coefficients), partial(inside, level, deltas))
        for level, (logits, coefficients, deltas) in enumerate(levels)
    ]


def _of_parameters(
    side: Side, names: list[str], boxes: Any, features: Tensor
) -> list[Level]:
    """CondInst: each cell's parameters are a network over the features."""
    outputs, model = dict(zip(names, boxes)), cast(Any, side.model)

    def masks(parameters: Tensor, places: Tensor, image: int, cells: Tensor) -> Tensor:
        info = InstanceData(
            param_preds=parameters[image].flatten(1)[:, cells].t(),
            points=places[cells, :2],
            strides=places[cells, 2],
        )
        (found,) = model.mask_head.forward_single(features[image], info)
        return found

    logits = outputs['cls_scores']
    both = zip(outputs['param_preds'], places_of(model.bbox_head, logits))
    return [Level(a, partial(masks, *each)) for a, each in zip(logits, both)]


def _read_positives(prototypes: bool, side: Side) -> list[Reading]:
    found = []
    for call in side.of('mask_head.forward'):
        images = call.output[0]
        if prototypes:
            # YOLACT returns probabilities, with the instances last
            images = [as_logits(masks).permute(2, 0, 1) for masks in images]
        flat = [masks.reshape(-1, *masks.shape[-2:]) for masks in images if len(masks)]
        # an image without positives may come at another size
        none = images[0].new_zeros((0, *images[0].shape[-2:]))
        logits = torch.cat(flat) if flat else none
        found.append(
            Reading(
                logits * side.once('crops', _crops) if prototypes else logits, 'mask'
            )
        )
    return found


def _crops(side: Side) -> Tensor:
    """YOLACT cuts its masks off at the box: 1 inside, (positives, H, W)."""
    assert side.samples is not None
    head: Any = side.model.get_submodule('mask_head')
    (call,) = side.of('mask_head.forward')
    ones = [torch.ones_like(masks) for masks in call.output[0]]
    metas = [sample.metainfo for sample in side.samples]
    positives = argument(head.forward, 'positive_infos')(call)
    return torch.cat(head.crop_mask_preds(ones, metas, positives))


def _weigh_crops(side: Side) -> list[Rows]:
    """Average over the inside of each box, then over the positives."""
    crops = side.once('crops', _crops)
    count = torch.full((), float(len(crops)), device=crops.device)
    return [Rows(weight=weights_inside(crops), norm=count)]
