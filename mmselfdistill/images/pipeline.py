"""The transforms of images without labels: a training pipeline less its annotations."""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from mmengine.registry import TRANSFORMS
from torch import Tensor

from mmselfdistill.seeds import seeded

Transform = Callable[[Any], Any]

# what mixes several images keeps some, or asks the dataset for more
_MIXES = ('get_indexes', 'get_indices')
# some draw whether they do anything
_TRIES = 10


class PipelineError(ValueError):
    """A pipeline does not make of an image what a model is given."""


@seeded(0)
def image_pipeline(
    configs: Sequence[Any], image: str, own: bool = False
) -> tuple[list[Transform], list[str]]:
    """Build the transforms of a training pipeline that run on an image alone.

    Annotations are not loaded: the transforms are given an image without objects, and a
    map of labels that is all 0. Each transform is tried on one image; those that mix
    several images, need objects, or turn an image without objects down, are left out.
    No random stream is moved, and all ranks find the same.

    Args:
        configs (Sequence): The training pipeline.
        image (str): Path of the image to try.
        own (bool): Whether it was written for these images: then nothing is left out.
            Defaults to False.

    Returns:
        tuple: The transforms, and the types of those that were left out.

    Raises:
        PipelineError: If they do not end in what a model is given, cannot be built, or
            one of an own pipeline would be left out.
    """
    results: Any = dict(img_path=image, img_id=0)
    kept: list[Transform] = []
    dropped: list[str] = []
    loaded = mixed = False
    transforms = [*_built(configs)]
    marked = _takes_map(transforms)
    for transform in transforms:
        name = type(transform).__name__
        if _loads_labels(transform):
            transform = _NoObjects(transform)
        parts = _parts(transform)
        mixes = any(hasattr(part, each) for part in parts for each in _MIXES)
        # it cuts a mosaic back to the size of one image
        border = getattr(transform, 'border', None)
        cuts = mixed and isinstance(border, (tuple, list)) and min(border) < 0
        mixed = mixed or mixes
        _take_without_objects(parts)
        if mixes or cuts:
            after, reason = None, 'it mixes several images, or cuts what is mixed'
        else:
            after, reason = _tried(transform, results)
        if after is not None:
            kept.append(transform)
            results = after
            if marked and not loaded and 'img' in results:
                kept.append(_NoObjects())
                results = kept[-1](results)
            loaded = loaded or 'img' in results or 'inputs' in results
        elif own and 'img' not in results:
            # it is the image's fault: another may be tried
            raise ValueError(f'{name}: {reason}')
        elif own:
            raise PipelineError(
                f'unlabeled.pipeline: {name} cannot be applied to one image without '
                f'objects, {image!r}: {reason}'
            )
        else:
            dropped.append(name)
    if not (loaded or own):
        raise ValueError('no transform of it loads an image')
    packed = isinstance(results, dict) and isinstance(results.get('inputs'), Tensor)
    if not packed or 'data_samples' not in results:
        raise PipelineError(
            'unlabeled.pipeline: it does not end in an image and a data sample, as '
            f'PackDetInputs and PackSegInputs do; left out were {dropped}'
        )
    return kept, dropped


def _loads_labels(transform: Any) -> bool:
    name = type(transform).__name__
    return name.startswith('Load') and 'Annotation' in name


def _takes_map(transforms: Sequence[Any]) -> bool:
    """Say whether they are a segmentor's, and load no map of labels that we know.

    What a transform makes up, it marks there.
    """
    packs = any(type(each).__name__ == 'PackSegInputs' for each in transforms)
    return packs and not any(map(_loads_labels, transforms))


def _built(configs: Sequence[Any]) -> Iterator[Any]:
    """Yield the transforms; of several branches, as of SoftTeacher, the first one's."""
    for cfg in configs:
        transform: Any = _transform(cfg) if isinstance(cfg, dict) else cfg
        branches = getattr(transform, 'branch_pipelines', None)
        if branches:
            first = next(iter(branches.values()))
            yield from getattr(first, 'transforms', [first])
        else:
            yield transform


def _transform(cfg: dict[str, Any]) -> Any:
    try:
        return TRANSFORMS.build(cfg)
    except Exception as error:
        raise PipelineError(
            f'unlabeled.pipeline: {cfg.get("type", cfg)!r} cannot be built: '
            f'{type(error).__name__}: {error}'
        ) from error


def _take_without_objects(parts: Sequence[Any]) -> None:
    """Let crops take an image without objects, at the first try."""
    for part in parts:
        if hasattr(part, 'allow_negative_crop'):
            part.allow_negative_crop = True
        if hasattr(part, 'cat_max_ratio'):
            # no crop has several classes: it would try ten times
            part.cat_max_ratio = 1.0


def _parts(transform: Any) -> list[Any]:
    """Return a transform, and those that it chooses from or applies."""
    if isinstance(transform, (list, tuple)):
        return [part for each in transform for part in _parts(each)]
    return [transform, *_parts(getattr(transform, 'transforms', ()))]


def seed_parts(transform: Any, seed: int) -> None:
    """Seed the parts of a transform that draw from a generator of their own."""
    for part in _parts(transform):
        # mmdet's, mmseg's and mmpretrain's Albu hold it as `aug`
        own = getattr(getattr(part, 'aug', None), 'set_random_seed', None)
        if callable(own):
            own(seed % 2**32)


def _tried(transform: Transform, results: Any) -> tuple[Any, str]:
    """Return what a transform makes of an image, or None and why it fails."""
    after = None
    for _ in range(_TRIES):
        try:
            after = transform(copy.deepcopy(results))
        except Exception as error:
            if 'img' not in results:
                # not for want of annotations: the image cannot be read
                raise
            return None, f'{type(error).__name__}: {error}'
        if after is None:
            return None, 'it rejects the image'
    return after, ''


class _NoObjects:
    """Stands for the loading of annotations: there are none.

    Args:
        loader (Callable, optional): The transform that loads them. Defaults to None: it
            is one of MMSegmentation.
    """

    def __init__(self, loader: Any = None) -> None:
        self._bbox = getattr(loader, 'with_bbox', False)
        self._mask = getattr(loader, 'with_mask', False)
        self._seg = getattr(loader, 'with_seg', None)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results['img'].shape[:2]
        if self._bbox or self._mask:
            from mmdet.structures.bbox import HorizontalBoxes

            results['gt_bboxes'] = HorizontalBoxes(np.zeros((0, 4), np.float32))
            results['gt_bboxes_labels'] = np.zeros(0, np.int64)
            results['gt_ignore_flags'] = np.zeros(0, bool)
        if self._mask:
            from mmdet.structures.mask import BitmapMasks

            results['gt_masks'] = BitmapMasks([], height, width)
        if 'gt_bboxes' not in results if self._seg is None else self._seg:
            results['gt_seg_map'] = np.zeros((height, width), np.uint8)
            results['seg_fields'] = ['gt_seg_map']
        return results
