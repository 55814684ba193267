"""What several families ask of a model's parts, and how they read outputs."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmselfdistill.containers import tensors_in

from .plan import Reading, Rows, Seam, Side, Site, parameters_of

# the call that makes a model's features, the first that there is
_FEATURES = (
    ('image_encoder', 'image_encoder.forward'),
    ('extract_feat', 'extract_feat'),
    ('backbone', 'backbone.forward'),
)
_HEADS = (
    'bbox_head',
    'mask_head',
    'panoptic_head',
    'decode_head',
    'segm_head',
    'query_head',
    'track_head',
    'semantic_head',
    'head',
)
UNREAD = 'it is not known how to read what it returns'


def feature_seam(model: nn.Module) -> str:
    """Return the path of the call that makes a model's features, or ''."""
    # hasattr says no to a part that is registered as None
    paths = [path for name, path in _FEATURES if getattr(model, name, None) is not None]
    return paths[0] if paths else ''


def features(model: nn.Module) -> Site:
    """Return the site of a model's features."""
    default = dict(type='PKDLoss', weight=0.5)
    return outputs_of(feature_seam(model), 'features', default)


def outputs_of(path: str, name: str, default: dict[str, Any] | None = None) -> Site:
    """Return the site of what a seam returns: its (N, C), (N, C, H, W) tensors.

    Sequences (N, L, C), as transformers have them, are read as (N * L, C).
    """

    def read(side: Side) -> list[Reading]:
        found = [each for call in side.of(path) for each in tensors_in(call.output)]
        flat = [each.flatten(0, 1) if each.dim() == 3 else each for each in found]
        return [
            Reading(each)
            for each in flat
            if each.dim() in (2, 4) and each.is_floating_point()
        ]

    return Site(name, (path,), read, default=default)


def head_seams(model: nn.Module) -> list[str]:
    """Return the ``forward`` of each head that the model has itself."""
    return [f'{path}.forward' for name in _HEADS for path in stages(model, name)]


def text_seams(model: nn.Module) -> list[str]:
    """Return the calls that turn a text into features, where there are any."""
    names = ('language_model', 'text_feat_map')
    return [f'{path}.forward' for name in names for path in stages(model, name)]


def seams(*paths: str) -> tuple[Seam, ...]:
    """Return plain seams, each path once."""
    return tuple(Seam(path) for path in dict.fromkeys(paths))


def stages(model: nn.Module, name: str) -> list[str]:
    """Return the paths of a head, or of each head in a list of heads."""
    head = getattr(model, name, None)
    if isinstance(head, nn.ModuleList):
        return [f'{name}.{i}' for i in range(len(head))]
    return [name] if isinstance(head, nn.Module) else []


def unread_heads(model: nn.Module, read: Sequence[str] = ()) -> dict[str, str]:
    """Return a model's heads besides those that are read, with the reason."""
    return {
        name: UNREAD
        for name, part in model.named_children()
        if name.endswith('head')
        and name not in read
        and next(part.parameters(), None) is not None
    }


def output_names(head: Any) -> list[str]:
    """Return the names of what a head's ``forward`` returns.

    Its ``loss_by_feat`` takes it in the same order.
    """
    return parameters_of(getattr(head, 'loss_by_feat', None))


def labelled(samples: Sequence[Any], size: Sequence[int], ignore: int | None) -> Tensor:
    """Say which pixels have a label, at a head's resolution: (N, H, W).

    All have one where no label is ignored.
    """
    labels = torch.stack([label_map(sample) for sample in samples])
    known = torch.ones_like(labels) if ignore is None else labels != ignore
    found = F.interpolate(known.float(), size=tuple(size), mode='nearest')
    return found[:, 0]


def label_map(sample: Any) -> Any:
    """Return a data sample's map of labels, a tensor (1, H, W), or None."""
    found = getattr(sample, 'gt_sem_seg', None)
    return None if found is None else found.get('sem_seg', found.get('data'))


def needs_of(model: Any) -> str:
    """Say what a model needs besides an image, in training and inference; or ''."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'use_det_processor', None) is False:
        return 'videos'
    if hasattr(model, 'language_model'):
        return 'a text with each image'
    parts = [getattr(model, name, None) for name in ('roi_head', 'rpn_head')]
    if parts[0] is not None and parts[1] is None:
        return 'proposals that are loaded with each image'
    return ''


def rows_of_pixels(side: Side, logits: Tensor, kind: str, ignore: int | None) -> Rows:
    """Return how much each pixel of class scores (N, C, H, W) counts.

    Those with a label count. Without labels all do that are no padding, or each image
    by the share of its pixels of which the teacher is sure: see :func:`sure_pixels`.
    """
    size = logits.shape[2:]
    if side.samples is not None:
        return Rows(weight=labelled(side.samples, size, ignore))
    shown = unpadded(side.metas, size, logits.device)
    if side.confidence is None:
        return Rows(weight=shown)
    if shown is None:
        shown = torch.ones(len(logits), *size, device=logits.device)
    share = sure_pixels(logits, kind, side.confidence, shown)
    return Rows(share[:, None, None] * shown, norm=shown.sum())


def unpadded(
    metas: Sequence[Mapping[str, Any]], size: Sequence[int], device: torch.device
) -> Tensor | None:
    """Say which pixels are of an image, at a head's resolution: (N, H, W).

    None if all are, or that is not known. An image's map ``shown`` (H, W) says which
    pixels no transform made up, such as those around a rotated image.
    """
    found = torch.ones(len(metas), *size, device=device)
    are_whole = True
    for each, meta in zip(found, metas):
        own = meta.get('img_shape')
        whole = meta.get('batch_input_shape', meta.get('pad_shape'))
        if own and whole and tuple(own[:2]) != tuple(whole[:2]):
            # those whose nearest pixel of the input is inside
            height, width = (-(-own[i] * size[i] // whole[i]) for i in (0, 1))
            each[height:], each[:, width:] = 0, 0
            are_whole = False
        if 'shown' in meta:
            shown = meta['shown'].float()[None, None]
            each *= F.interpolate(shown, tuple(size), mode='nearest')[0, 0]
            are_whole = False
    return None if are_whole else found


def sure_pixels(logits: Tensor, kind: str, confidence: float, shown: Tensor) -> Tensor:
    r"""Return the share of an image's pixels of which a teacher is sure: (N).

    .. math::
        q_n = \frac{1}{\sum_i m_{ni}} \sum_i m_{ni} [\max_c p_{nci} > \tau]

    with :math:`\tau` the confidence and :math:`m` 0 in padding; 0 where nothing is
    shown. It multiplies the loss of all pixels of the image (DAFormer, arXiv
    2111.14887, with 0.968). Of a single sigmoid, the larger probability of yes and no
    is taken.

    Args:
        logits (Tensor): The teacher's, (N, C, H, W).
        kind (str): 'softmax' or 'sigmoid'.
        confidence (float): :math:`\tau`, in [0, 1].
        shown (Tensor): :math:`m`, (N, H, W).
    """
    logits = logits.float()
    if kind == 'softmax':
        largest = logits.softmax(1).amax(1)
    else:
        largest = (logits.abs() if logits.shape[1] == 1 else logits).amax(1).sigmoid()
    # a crop may lie wholly outside of a rotated image
    return ((largest > confidence) * shown).sum((1, 2)) / shown.sum((1, 2)).clamp(min=1)


def decoded(model: Any, inputs: Tensor, samples: Sequence[Any]) -> Tensor:
    """Run a segmentor as inference does: its heads may have no other way."""
    return model.encode_decode(inputs, [each.metainfo for each in samples])


def kind_of(head: Any) -> str:
    """Say how a detection head's class scores become probabilities.

    What the head or its loss says of itself; a softmax needs a background class.
    """
    sigmoid = getattr(head, 'use_sigmoid_cls', None)
    if sigmoid is None:
        sigmoid = getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', None)
    if sigmoid is None:
        classes = getattr(head, 'num_classes', None)
        sigmoid = getattr(head, 'cls_out_channels', classes) == classes
    return 'sigmoid' if sigmoid else 'softmax'


def why_no_boxes(head: Any) -> str:
    """Say why what a head regresses is not compared as boxes of 4 numbers, or ''."""
    if hasattr(head, 'num_buckets'):
        return 'buckets and offsets in them: only together a box'
    # rotated boxes have 5, quadrilaterals 8
    size = getattr(getattr(head, 'bbox_coder', None), 'encode_size', 4)
    return '' if size == 4 else f'{size} numbers a box: those of 4 are compared'


def foreground(logits: Tensor, kind: str) -> Tensor:
    """Return the probability (N) that a row of (N, C) is any object.

    The largest class of a sigmoid head; one minus the background, the last
    class, of a softmax head.
    """
    logits = logits.float()
    if kind == 'sigmoid':
        return logits.amax(1).sigmoid()
    return 1 - logits.softmax(1)[:, -1]


def by_count(counted: Tensor) -> Rows:
    """Return rows that count alike, and are divided by a soft count of some."""
    return Rows(norm=counted.sum())


def over_objects(read: Callable[[Side], list[Reading]]) -> Callable[[Side], list[Rows]]:
    """Return what divides a site's readings by the objects that the teacher sees."""

    def weigh(side: Side) -> list[Rows]:
        return [by_count(foreground(r.at(None), r.kind)) for r in read(side)]

    return weigh


def as_logits(probabilities: Tensor) -> Tensor:
    """Return the logits of what a head has already put through a sigmoid."""
    return torch.logit(probabilities.float(), eps=1e-6)


def as_sides(boxes: Tensor) -> Tensor:
    """Return boxes (N, 4) of x1, y1, x2, y2 as distances from the origin."""
    return torch.cat([-boxes[:, :2], boxes[:, 2:]], 1)


def rows(levels: list[Tensor], columns: int) -> Tensor:
    """Join levels of (N, A * columns, H, W) into one (N * A * H * W, columns)."""
    flat = [level.permute(0, 2, 3, 1).reshape(-1, columns) for level in levels]
    return torch.cat(flat)
