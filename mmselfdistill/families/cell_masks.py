"""The masks of a head that has a mask, or what makes one, for each cell."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, List, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import Reading, Rows, Side, Site
from .shared import as_logits, foreground, kind_of, output_names, rows

# cells of each level and image whose masks are compared: the teacher's surest
_CELLS = 8
MASK_TERM = dict(type='MaskDistillLoss', weight=1.0)

# the masks (k, H, W) of some cells (k) of an image
Masked = Callable[[int, Tensor], Tensor]


class Level(NamedTuple):
    """One level of a head that has a mask for each cell.

    Args:
        logits (Tensor): (N, A * C, h, w) of the classes.
        masks (Callable): The masks of some cells.
        inside (Callable, optional): The cells (N, k) to (N * k, H, W), 1 where such a
            mask counts. Defaults to None: everywhere.
    """

    logits: Tensor
    masks: Masked
    inside: Callable[[Tensor], Tensor] | None = None


Levels = Callable[[Side], List[Level]]


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
        return [Reading(partial(_chosen, each), 'mask') for each in levels(side)]

    def weigh(side: Side) -> list[Rows]:
        return [_surest(head, each) for each in levels(side)]

    return Site('masks', (f'{path}.forward', *seams), read, weigh, MASK_TERM)


def weights_inside(inside: Tensor) -> Tensor:
    """Return what makes a mean over (n, H, W) one over the inside of each box."""
    return inside.shape[1] * inside.shape[2] / inside.sum((1, 2)).clamp(min=1)


def _chosen(level: Level, index: tuple[Tensor, Tensor | None]) -> Tensor:
    cells, inside = index
    masks = torch.cat([level.masks(i, cells[i]) for i in range(len(cells))])
    return masks if inside is None else masks * inside


def _surest(head: Any, level: Level) -> Rows:
    """Choose the cells (N, k) that likely hold an object, with the probability."""
    flat = by_cell(level.logits, head.cls_out_channels)
    scores = foreground(flat.flatten(0, 1), kind_of(head)).view(flat.shape[:2])
    sure, cells = scores.topk(min(_CELLS, scores.shape[1]))
    if level.inside is None:
        return Rows(weight=sure.flatten(), index=(cells, None))
    inside = level.inside(cells)
    weight = sure.flatten() * weights_inside(inside)
    return Rows(weight=weight, norm=sure.float().sum(), index=(cells, inside))


def by_cell(level: Tensor, columns: int) -> Tensor:
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
        both = zip(outputs['kernel_preds'], places_of(head, logits))
        masks = [
            partial(_of_places, head, outputs['mask_feat'], *each) for each in both
        ]
    return [Level(*each) for each in zip(logits, masks)]


def places_of(head: Any, levels: list[Tensor]) -> list[Tensor]:
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
