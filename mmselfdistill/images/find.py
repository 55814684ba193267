"""Find images: those of a folder, or those of a dataset."""

from __future__ import annotations

import logging
import os
import os.path as osp
from typing import Any, Iterator, Mapping, Sequence

from mmengine.fileio import isdir, join_path, list_dir_or_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmselfdistill.names import name_of

# they repeat, join or mix the images of others
_WRAPPERS = (
    'ClassBalancedDataset',
    'ConcatDataset',
    'MultiImageMixDataset',
    'RepeatDataset',
)
_ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


def find_images(data: object) -> list[str]:
    """Return the paths of images.

    Args:
        data (str | Mapping): A folder, which is searched with all that is below it and
            does not begin with a dot; or the config of a dataset, whose labels are not
            used, or of a wrapper.

    Raises:
        ValueError: If there is none, or the dataset cannot be built.
    """
    if isinstance(data, str):
        return _in_folder(osp.expanduser(data))
    if isinstance(data, Mapping) and 'type' in data:
        inner = _inside(data)
        if inner is None:
            return _of_dataset(dict(data))
        found = [image for each in inner for image in find_images(each)]
        if not found:
            raise ValueError(f'unlabeled.data: {name_of(data["type"])} has no datasets')
        return found
    raise ValueError(
        'unlabeled.data: expected the path of a folder, as text, or the config of a '
        f'dataset with its type, but got {data!r}'
    )


def _in_folder(folder: str) -> list[str]:
    try:
        exists = isdir(folder)
    except Exception as error:
        # MMEngine reads folders by several backends; some cannot list them
        raise ValueError(
            f'unlabeled.data: the folder {folder!r} cannot be listed: '
            f'{type(error).__name__}: {error}'
        ) from error
    if not exists:
        file = ' is a file: give its folder, or the config of a dataset'
        raise ValueError(
            f'unlabeled.data: {folder!r}{file}'
            if osp.isfile(folder)
            else f'unlabeled.data: there is no folder {folder!r}'
        )
    local = osp.isdir(folder)
    names = _below(folder) if local else list_dir_or_file(folder, False, recursive=True)
    # the order of a file system is its own
    found = sorted(name for name in names if name.lower().endswith(_ENDINGS))
    if not found:
        raise ValueError(
            f'unlabeled.data: no image is in {folder!r}: looked for files that end '
            f'with {", ".join(_ENDINGS)}'
        )
    return [str(join_path(folder, name)) for name in found]


def _below(folder: str) -> Iterator[str]:
    """Yield the files below a folder; links are followed, but not back to above.

    A folder to which several ways lead is searched once, by the one without links if
    there is one.
    """
    seen: set[str] = set()
    starts = [folder]
    for start in starts:
        for place, folders, files in os.walk(start, onerror=_skip):
            true = osp.realpath(place)
            if true in seen:
                folders.clear()
                continue
            seen.add(true)
            folders[:] = sorted(name for name in folders if name[0] != '.')
            links = (osp.join(place, name) for name in folders)
            starts += [
                link
                for link in links
                if osp.islink(link)
                and not f'{true}/'.startswith(f'{osp.realpath(link)}/')
            ]
            for name in files:
                if name[0] != '.':
                    yield osp.relpath(osp.join(place, name), folder)


def _skip(error: OSError) -> None:
    print_log(
        f'unlabeled.data: the folder {error.filename!r} cannot be read, and is left '
        f'out: {error.strerror}',
        logger='current',
        level=logging.WARNING,
    )


def _inside(cfg: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return the configs in a wrapper that keeps all images, or None: it is none."""
    name = name_of(cfg['type'])
    if name not in _WRAPPERS:
        return None
    inner = cfg.get('datasets') if name == 'ConcatDataset' else [cfg.get('dataset')]
    if not isinstance(inner, (list, tuple)):
        raise ValueError(
            f'unlabeled.data: expected a list of datasets in {name}, but got {inner!r}'
        )
    return inner


def frames_of(dataset: Any) -> list[dict[str, Any]]:
    """Return what a dataset says of each image, or of each frame of its videos."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [frame for info in infos for frame in _frames(info)]


def _frames(info: dict[str, Any]) -> list[dict[str, Any]]:
    frames = info.get('images')
    # others may keep paths there
    if isinstance(frames, list) and all(isinstance(each, dict) for each in frames):
        return frames
    return [info]


def _of_dataset(cfg: dict[str, Any]) -> list[str]:
    found: list[str] | None = None
    reasons: list[Exception] = []
    # in test mode, images without objects are kept; some want to know classes there
    for more in (dict(test_mode=True), dict(filter_cfg=None)):
        try:
            dataset: Any = DATASETS.build({**cfg, 'pipeline': [], **more})
            found = [osp.expanduser(info['img_path']) for info in frames_of(dataset)]
            break
        except Exception as error:
            reasons.append(error)
    if found is None:
        raise ValueError(
            f'unlabeled.data: the dataset {cfg["type"]!r} gives no paths of images: '
            f'{type(reasons[0]).__name__}: {reasons[0]}'
        ) from reasons[0]
    if not found:
        raise ValueError(f'unlabeled.data: the dataset {cfg["type"]!r} is empty')
    return found
