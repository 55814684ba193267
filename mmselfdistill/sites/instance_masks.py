"""Instance masks of single-stage detectors, however the head makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, ClassVar, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import Family, Pair, Reader, Replayed, output_names
from .predictions import activation_of, as_logits, foreground, rows

# cells of each level and image whose masks are compared: the teacher's surest
_CELLS = 8

# class logits of a level (N, C, h, w), and the masks of some cells of an image
Level = Tuple[Tensor, Callable[[int, Tensor], Tensor]]


@dataclass
class MaskReader:
    """How the masks of a dense detector are read.

    Args:
        read (Reader): Returns the pairs.
        state (dict): See :meth:`Family.state`. Defaults to none.
    """

    read: Reader
    state: dict[str, str] = field(default_factory=dict)


def find_masks(model: Any) -> MaskReader | None:
    """Return how the masks of a model with a dense ``bbox_head`` are read."""
    if 'positive_infos' in output_names(getattr(model, 'mask_head', None)):
        # CondInst, BoxInst, YOLACT: masks of the positives of the box head
        read = partial(_read_positives, model.mask_head)
        return MaskReader(read, {'bbox_head.get_positive_infos': '_raw_positive_infos'})
    if 'kernel_preds' in output_names(model.bbox_head):
        return MaskReader(partial(_read_cells, 'bbox_head', model.bbox_head))
    return None


def _read_positives(head: Any, replayed: Replayed) -> list[Pair]:
    return [
        Pair('masks', _joined(head, ours.output[0]), _joined(head, theirs.output[0]))
        for ours, theirs in replayed.of('mask_head.forward')
    ]


def _joined(head: Any, images: list[Tensor]) -> Tensor:
    """Return the logits (P, H, W) of the masks of all images."""
    if hasattr(head, 'protonet'):
        # YOLACT returns probabilities, with the instances last
        images = [as_logits(masks).permute(2, 0, 1) for masks in images]
    return torch.cat([masks.reshape(-1, *masks.shape[-2:]) for masks in images])


def _read_cells(path: str, head: Any, replayed: Replayed) -> list[Pair]:
    """Read the masks of the teacher's surest cells, on both sides."""
    pairs: list[Pair] = []
    for ours, theirs in replayed.of(f'{path}.forward'):
        levels = zip(_levels(head, ours.output), _levels(head, theirs.output))
        for (_, student), (logits, teacher) in levels:
            sure, cells = _surest(head, logits)
            images = range(len(cells))
            pairs.append(
                Pair(
                    f'masks[{len(pairs)}]',
                    torch.cat([student(i, cells[i]) for i in images]),
                    torch.cat([teacher(i, cells[i]) for i in images]),
                    dict(confidence=sure.flatten()),
                )
            )
    return pairs


def _surest(head: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and indices (N, k) of cells that likely hold an object."""
    flat = logits.permute(0, 2, 3, 1).flatten(1, 2)
    scores = foreground(flat.flatten(0, 1), activation_of(head)).view(flat.shape[:2])
    return scores.topk(min(_CELLS, scores.shape[1]))


def _levels(head: Any, output: Any) -> list[Level]:
    """Return the levels of a head that has a mask, or a kernel, for each cell."""
    outputs = dict(zip(output_names(head), output))
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


class MaskGridDetector(Family):
    """A detector with a ``mask_head`` alone, which has a mask for each cell.

    SOLO in its kinds. Sites: ``features``, ``logits`` (one (cells, C) for all
    levels: quality-focal KL over the teacher's positives), ``masks`` (one
    (cells, H, W) a level, of the cells where the teacher is surest of an
    object, weighted by that: binary KL).
    """

    name = 'grid of masks'
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        **Family.defaults,
        'logits': dict(type='SoftTargetLoss', weight=1.0, beta=1.0),
        'masks': dict(type='MaskDistillLoss', weight=1.0),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head: Any = model.mask_head

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model has a ``mask_head`` over a grid of cells."""
        names = output_names(getattr(model, 'mask_head', None))
        return super().matches(model) and 'mlvl_cls_preds' in names

    def readers(self) -> dict[str, Reader]:
        """Return the sites of a grid of masks."""
        return {
            **super().readers(),
            'logits': self._read_logits,
            'masks': partial(_read_cells, 'mask_head', self.head),
        }

    def _read_logits(self, replayed: Replayed) -> list[Pair]:
        context = dict(activation=activation_of(self.head), average_over='positives')
        return [
            Pair('logits', self._rows(ours.output), self._rows(theirs.output), context)
            for ours, theirs in replayed.of('mask_head.forward')
        ]

    def _rows(self, output: Any) -> Tensor:
        levels = [logits for logits, _ in _levels(self.head, output)]
        return rows(levels, levels[0].shape[1])
