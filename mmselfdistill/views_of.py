"""The images of a batch, as the student and as its teacher sees them."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from torch import Tensor

from mmselfdistill.containers import tensors_in
from mmselfdistill.seeds import generator_of
from mmselfdistill.views import Size, View


def views_of(
    view: View | None,
    inputs: Any,
    samples: Any,
    seed: Sequence[int],
    metas: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[int, Tensor], list[tuple[Tensor, Tensor]]]:
    """Return the views of all images that a model is given.

    Args:
        view (View | None): None for no view.
        inputs (Any): The images, (N, C, H, W) or (N, frames, C, H, W), in any
            containers.
        samples (Sequence): The batch's data samples: padding is not perturbed.
        seed (Sequence[int]): What the draws depend on, besides the rank.
        metas (Sequence): What is known of each image without labels: of pixels that are
            not ``shown``, no other image gets any. Defaults to ().

    Returns:
        tuple: What the student sees, by the ``id`` of the image; and pairs of what the
        student and what the teacher sees.

    Raises:
        ValueError: If there is a view, and no image.
    """
    shown: dict[int, Tensor] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    if view is None:
        return shown, pairs
    for number, (each, own) in enumerate(_images(inputs, samples)):
        flat = each.flatten(0, -4)
        draw = generator_of(each.device, *seed, get_rank(), number)
        sizes = _sizes(own, flat)
        seen, clean = view(flat, draw, sizes, _made_up(metas, flat))
        seen = _padded(seen, clean, sizes).view_as(each).contiguous()
        shown[id(each)] = seen
        pairs.append((seen, clean.view_as(each).contiguous()))
    if not pairs:
        raise ValueError(
            'view: the model is given no image of floating point, (N, C, H, W), in its '
            'argument inputs'
        )
    return shown, pairs


def _images(inputs: Any, samples: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yield each tensor of images, with its data samples."""
    if isinstance(inputs, Mapping):
        for key, value in inputs.items():
            # semi-supervised detectors of MMDetection perturb these by themselves
            if not str(key).startswith('unsup'):
                own = samples.get(key) if isinstance(samples, Mapping) else samples
                yield from _images(value, own)
        return
    for each in tensors_in(inputs):
        if each.dim() > 3 and each.is_floating_point():
            yield each, samples


def _sizes(samples: Any, images: Tensor) -> list[Size] | None:
    """Return height and width of each image or frame, if it is known."""
    # a mapping is of several tensors, a tensor of labels alone
    listed = samples if isinstance(samples, (list, tuple)) else ()
    frames = [f for each in listed for f in getattr(each, 'video_data_samples', [each])]
    shapes = [getattr(frame, 'img_shape', None) for frame in frames]
    found = [(int(shape[0]), int(shape[1])) for shape in shapes if shape is not None]
    if len(found) != len(images):
        return None
    # a transform may not have noted how it has resized: either who pads has noted it,
    # or the largest just fill the batch
    noted = all(
        hasattr(f, 'batch_input_shape') or hasattr(f, 'pad_shape') for f in frames
    )
    filled = tuple(map(max, zip(*found))) == images.shape[-2:]
    return found if noted or filled else None


def _made_up(metas: Sequence[Mapping[str, Any]], images: Tensor) -> Tensor | None:
    """Return which pixels a transform has made up, (N, 1, H, W), or None if none."""
    if len(metas) != len(images) or not any('shown' in meta for meta in metas):
        return None
    found = torch.zeros_like(images[:, :1], dtype=torch.bool)
    for place, meta in zip(found, metas):
        shown = meta.get('shown')
        if shown is not None:
            size = tuple(meta.get('img_shape', shown.shape))[:2]
            if shown.shape not in (size, images.shape[2:]):
                # a pipeline may make the map of labels smaller
                resized = F.interpolate(shown[None, None].float(), size, mode='nearest')
                shown = resized[0, 0] > 0
            place[0, : shown.shape[0], : shown.shape[1]] = ~shown
    return found


def _padded(seen: Tensor, clean: Tensor, sizes: Sequence[Size] | None) -> Tensor:
    """Return what is seen, with the padding of what is clean."""
    if sizes is None:
        return seen
    seen = seen.clone()
    for i, (height, width) in enumerate(sizes):
        seen[i, :, height:] = clean[i, :, height:]
        seen[i, :, :, width:] = clean[i, :, :, width:]
    return seen
