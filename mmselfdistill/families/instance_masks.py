"""Instance masks of single-stage detectors, however the head makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, List, Tuple

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from .plan import Reading, Rows, Seam, Side, Site, argument
from .shared import as_logits, foreground, kind_of, output_names, rows

# cells of each level and image whose masks are compared: the teacher's surest
_CELLS = 8
_DEFAULT = dict(type='MaskDistillLoss', weight=1.0)

# the masks of some cells of an image, and the class logits of a level (N, A * C, h, w)
Masked = Callable[[int, Tensor], Tensor]
Level = Tuple[Tensor, Masked]
Levels = Callable[[Side], List[Level]]


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
        model: Any = side.model
        both = zip(side.of('bbox_head.forward'), side.of(base))
        return [
            level
            for boxes, bases in both
            for level in dynamic(model, names, boxes.output, bases.output)
        ]

    names = output_names(model.bbox_head)
    dynamic = _of_prototypes if prototypes else _of_parameters
    site = Site(
        'masks',
        ('mask_head.forward',),
        partial(_read_positives, prototypes),
        _weigh_crops if prototypes else None,
        default=_DEFAULT,
        unlabeled=masks_of_cells('bbox_head', model.bbox_head, (base,), levels),
    )
    # between the box head and the mask head, which is given its positives
    positives = Seam('bbox_head.get_positive_infos', state='_raw_positive_infos')
    return Masks((site,), (positives, Seam(base)), run)


def _of_prototypes(
    model: Any, names: list[str], boxes: Any, prototypes: Tensor
) -> list[Level]:
    """YOLACT: each anchor's coefficients combine the prototypes of its image."""
    outputs = dict(zip(names, boxes))

    def masks(coefficients: Tensor, image: int, cells: Tensor) -> Tensor:
        chosen = _flat(coefficients, model.bbox_head.num_protos)[image, cells]
        return torch.einsum('nk,khw->nhw', chosen, prototypes[image])

    coefficients = outputs['coeff_preds']
    return [*zip(outputs['cls_scores'], (partial(masks, c) for c in coefficients))]


def _of_parameters(
    model: Any, names: list[str], boxes: Any, features: Tensor
) -> list[Level]:
    """CondInst: each cell's parameters are a network over the features."""
    outputs = dict(zip(names, boxes))

    def masks(parameters: Tensor, places: Tensor, image: int, cells: Tensor) -> Tensor:
        info = InstanceData(
            param_preds=parameters[image].flatten(1)[:, cells].t(),
            points=places[cells, :2],
            strides=places[cells, 2],
        )
        (found,) = model.mask_head.forward_single(features[image], info)
        return found

    logits = outputs['cls_scores']
    both = zip(outputs['param_preds'], _places(model.bbox_head, logits))
    return [*zip(logits, (partial(masks, *each) for each in both))]


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
    pixels = crops.shape[1] * crops.shape[2]
    weight = pixels / crops.sum((1, 2)).clamp(min=1)
    count = torch.full((), float(len(crops)), device=crops.device)
    return [Rows(weight=weight, norm=count)]


def masks_of_cells(
    path: str, head: Any, seams: tuple[str, ...] = (), levels: Levels | None = None
) -> Site:
    """Return the site of a head that has a mask, or what makes one, for each cell.

    Of each level and image the cells are compared in which the teacher is surest of an
    object, weighted by that.

    Args:
        path (str): The head's.
        head (nn.Module): The head.
        seams (tuple[str, ...]): What is read besides its ``forward``. Defaults to ().
        levels (Callable, optional): One side to its levels. Defaults to None: the head
            returns all that they need.
    """
    levels = levels or partial(_levels, path, output_names(head))

    def read(side: Side) -> list[Reading]:
        return [Reading(partial(_chosen, m), 'mask') for _, m in levels(side)]

    def weigh(side: Side) -> list[Rows]:
        return [_surest(head, logits) for logits, _ in levels(side)]

    return Site('masks', (f'{path}.forward', *seams), read, weigh, _DEFAULT)


def _chosen(masks: Masked, cells: Tensor) -> Tensor:
    return torch.cat([masks(i, cells[i]) for i in range(len(cells))])


def _surest(head: Any, logits: Tensor) -> Rows:
    """Choose the cells (N, k) that likely hold an object, with the probability."""
    flat = _flat(logits, head.cls_out_channels)
    scores = foreground(flat.flatten(0, 1), kind_of(head)).view(flat.shape[:2])
    sure, cells = scores.topk(min(_CELLS, scores.shape[1]))
    return Rows(weight=sure.flatten(), index=cells)


def _flat(level: Tensor, columns: int) -> Tensor:
    """Return (N, A * columns, h, w) as (N, h * w * A, columns)."""
    return rows([level], columns).view(len(level), -1, columns)


def _levels(path: str, names: list[str], side: Side) -> list[Level]:
    return [
        level
        for call in side.of(f'{path}.forward')
        for level in levels_of(side.model.get_submodule(path), names, call.output)
    ]


def levels_of(head: Any, names: list[str], output: Any) -> list[Level]:
    """Return the levels of a head that has a mask, or a kernel, for each cell."""
    outputs = dict(zip(names, output))
    logits = outputs.get('mlvl_cls_preds', outputs.get('cls_scores'))
    assert logits is not None
    masks: list[Masked]
    if 'mlvl_mask_preds' in outputs:
        masks = [partial(_of_cells, each) for each in outputs['mlvl_mask_preds']]
    elif 'mlvl_mask_preds_x' in outputs:
        sides = zip(outputs['mlvl_mask_preds_x'], outputs['mlvl_mask_preds_y'])
        masks = [partial(_of_crossings, x, y) for x, y in sides]
    elif 'mlvl_kernel_preds' in outputs:
        kernels = outputs['mlvl_kernel_preds']
        masks = [partial(_of_kernels, head, outputs['mask_feats'], k) for k in kernels]
    else:
        both = zip(outputs['kernel_preds'], _places(head, logits))
        masks = [
            partial(_of_places, head, outputs['mask_feat'], *each) for each in both
        ]
    return list(zip(logits, masks))


def _places(head: Any, levels: list[Tensor]) -> list[Tensor]:
    """Return where each cell of a level is, and how large."""
    sizes = [level.shape[2:] for level in levels]
    return head.prior_generator.grid_priors(
        sizes, device=levels[0].device, with_stride=True
    )


def _of_cells(masks: Tensor, image: int, cells: Tensor) -> Tensor:
    """SOLO: a mask for each cell."""
    return masks[image][cells]


def _of_crossings(x: Tensor, y: Tensor, image: int, cells: Tensor) -> Tensor:
    """Decoupled SOLO: the product of a column's and a row's mask."""
    columns, side = x[image].sigmoid(), x.shape[1]
    in_rows = y[image].sigmoid()
    row = torch.div(cells, side, rounding_mode='floor')
    return as_logits(in_rows[row] * columns[cells % side])


def _of_kernels(
    head: Any, features: Tensor, kernels: Tensor, image: int, cells: Tensor
) -> Tensor:
    """SOLOv2: a convolution of the mask features."""
    size = head.dynamic_conv_size
    weight = kernels[image].flatten(1)[:, cells].t()
    weight = weight.reshape(len(cells), -1, size, size)
    return F.conv2d(features[image : image + 1], weight)[0]


def _of_places(
    head: Any,
    features: Tensor,
    kernels: Tensor,
    places: Tensor,
    image: int,
    cells: Tensor,
) -> Tensor:
    """RTMDet-Ins: convolutions of the mask features, seen from a place."""
    weights = kernels[image].flatten(1)[:, cells].t()
    return head._mask_predict_by_feat_single(features[image], weights, places[cells])
