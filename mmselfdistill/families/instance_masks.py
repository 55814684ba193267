"""Instance masks of single-stage detectors, however the head makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import Reading, Rows, Seam, Side, Site
from .shared import as_logits, foreground, kind_of, output_names

# cells of each level and image whose masks are compared: the teacher's surest
_CELLS = 8
_DEFAULT = dict(type='MaskDistillLoss', weight=1.0)

# class logits of a level (N, C, h, w), and the masks of some cells of an image
Level = Tuple[Tensor, Callable[[int, Tensor], Tensor]]


@dataclass(frozen=True)
class Masks:
    """The masks of a dense detector: their site, and the seams that it needs."""

    site: Site | None = None
    seams: tuple[Seam, ...] = ()

    def sites(self) -> tuple[Site, ...]:
        """Return the site, where there is one."""
        return () if self.site is None else (self.site,)


def masks_of(model: Any) -> Masks:
    """Return how the masks of a model with a dense ``bbox_head`` are read."""
    if 'positive_infos' in output_names(getattr(model, 'mask_head', None)):
        # CondInst, BoxInst, YOLACT: masks of the positives of the box head
        read = partial(_read_positives, hasattr(model.mask_head, 'protonet'))
        site = Site('masks', ('mask_head.forward',), read, default=_DEFAULT)
        path = 'bbox_head.get_positive_infos'
        return Masks(site, (Seam(path, state='_raw_positive_infos'),))
    if 'kernel_preds' in output_names(model.bbox_head):
        return Masks(masks_of_cells('bbox_head', model.bbox_head))
    return Masks()


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
        found.append(Reading(torch.cat(flat) if flat else none, 'mask'))
    return found


def masks_of_cells(path: str, head: Any) -> Site:
    """Return the site of a head that has a mask, or a kernel, for each cell.

    Of each level and image the cells are compared in which the teacher is surest of an
    object, weighted by that.
    """
    levels = partial(_levels, path, output_names(head))

    def read(side: Side) -> list[Reading]:
        return [Reading(partial(_chosen, m), 'mask') for _, m in levels(side)]

    def weigh(side: Side) -> list[Rows]:
        return [_surest(logits, kind_of(head)) for logits, _ in levels(side)]

    return Site('masks', (f'{path}.forward',), read, weigh, _DEFAULT)


def _chosen(masks: Callable[[int, Tensor], Tensor], cells: Tensor) -> Tensor:
    return torch.cat([masks(i, cells[i]) for i in range(len(cells))])


def _surest(logits: Tensor, kind: str) -> Rows:
    """Choose the cells (N, k) that likely hold an object, with the probability."""
    flat = logits.permute(0, 2, 3, 1).flatten(1, 2)
    scores = foreground(flat.flatten(0, 1), kind).view(flat.shape[:2])
    sure, cells = scores.topk(min(_CELLS, scores.shape[1]))
    return Rows(weight=sure.flatten(), index=cells)


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
    masks: list[Callable[[int, Tensor], Tensor]]
    if 'mlvl_mask_preds' in outputs:
        masks = [partial(_of_cells, each) for each in outputs['mlvl_mask_preds']]
    elif 'mlvl_mask_preds_x' in outputs:
        sides = zip(outputs['mlvl_mask_preds_x'], outputs['mlvl_mask_preds_y'])
        masks = [partial(_of_crossings, x, y) for x, y in sides]
    elif 'mlvl_kernel_preds' in outputs:
        kernels = outputs['mlvl_kernel_preds']
        masks = [partial(_of_kernels, head, outputs['mask_feats'], k) for k in kernels]
    else:
        sizes = [level.shape[2:] for level in logits]
        places = head.prior_generator.grid_priors(
            sizes, device=logits[0].device, with_stride=True
        )
        both = zip(outputs['kernel_preds'], places)
        masks = [
            partial(_of_places, head, outputs['mask_feat'], *each) for each in both
        ]
    return list(zip(logits, masks))


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
    masks: Tensor = head._mask_predict_by_feat_single(
        features[image], weights, places[cells]
    )
    return masks
