"""From the setting ``unlabeled`` of a hook to batches of images without labels."""

from __future__ import annotations

import copy
import functools
import os.path as osp
from collections import Counter
from typing import Any, Mapping, Sequence

from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from mmselfdistill.core.preprocessor import random_augments
from mmselfdistill.core.unlabeled import check_takes_images
from mmselfdistill.errors import check_bool, check_choice, check_number, check_whole
from mmselfdistill.images import (
    Batches,
    PipelineError,
    find_images,
    frames_of,
    image_pipeline,
)
from mmselfdistill.views import build_view

from .run import bare_model

# nothing that changes what an object is
DEFAULT_VIEW = dict(brightness=0.5, contrast=0.5, color=0.5, blur=1.0, erase=0.1)
_FOLDERS = 4  # that are named in the log
_DEFAULTS: dict[str, Any] = dict(
    batch_size=None,
    weight=1.0,
    view={},
    pipeline=None,
    num_workers=None,
    skip_broken=False,
    statistics=False,
    confidence=None,
)


def check_unlabeled(cfg: object) -> dict[str, Any] | None:
    """Check the setting as far as it can be without a run, and complete it.

    Raises:
        ValueError: If a key or a value is wrong.
    """
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping) or 'data' not in cfg:
        raise ValueError(
            "unlabeled: expected a dict with the data, such as dict(data='folder'), or "
            f'None, but got {cfg!r}'
        )
    for key in cfg:
        check_choice('unlabeled', key, ('data', *_DEFAULTS))
    checked = {**_DEFAULTS, **cfg}
    for key, low in (('batch_size', 1), ('num_workers', 0)):
        if checked[key] is not None:
            check_whole(f'unlabeled.{key}', checked[key], low)
    for key in ('skip_broken', 'statistics'):
        check_bool(f'unlabeled.{key}', checked[key])
    pipeline = checked['pipeline']
    if not isinstance(pipeline, (list, tuple, type(None))):
        raise ValueError(
            f'unlabeled.pipeline: expected a list of transforms, but got {pipeline!r}'
        )
    checked['weight'] = check_number('unlabeled.weight', checked['weight'], 0.0)
    if checked['confidence'] is not None:
        sure = check_number('unlabeled.confidence', checked['confidence'], 0.0, 1.0)
        if sure == 1:
            raise ValueError(
                'unlabeled.confidence: expected a number in [0, 1), but got '
                f'{checked["confidence"]!r}: no probability is above 1'
            )
        checked['confidence'] = sure
    view = _over_default(checked['view'])
    checked['view'] = build_view(view, 'unlabeled.view', labels=False)
    return checked


def _over_default(view: Any) -> Any:
    """Merge a view over the default one, as terms are merged."""
    if not isinstance(view, Mapping):
        return view
    view = dict(view)
    alone = check_bool('unlabeled.view._delete_', view.pop('_delete_', False))
    base = {} if alone else DEFAULT_VIEW
    return {**base, **view}


def load_unlabeled(cfg: Mapping[str, Any], runner: Runner) -> dict[str, Any]:
    """Find the images, and try one: all that can be wrong before the first step.

    Args:
        cfg (Mapping): What :func:`check_unlabeled` returned.
        runner (Runner): Its loader of images with labels has the pipeline, and what is
            not set here.

    Returns:
        dict: The arguments of :class:`Unlabeled`, model and plan left out; where the
        weight is 0 only that.

    Raises:
        ValueError: If the model needs more than images, or checkpoints its activations
            in DDP, there is no image, or it cannot be loaded.
    """
    if cfg['weight'] == 0:
        return dict(weight=0.0)
    check_takes_images(bare_model(runner))
    _check_checkpointing(runner)
    labeled: Any = runner.train_loop.dataloader
    images = find_images(cfg['data'])
    pipeline, dropped = _tried(cfg, labeled.dataset, images)
    dropped = [*dropped, *random_augments(bare_model(runner))]
    size = cfg['batch_size'] or batch_size_of(labeled)
    view = cfg['view']
    if view is not None and view.cutmix and size == 1:
        raise ValueError(
            'unlabeled.view.cutmix: it mixes the images of a batch, and batch_size is 1'
        )
    workers = cfg['num_workers']
    left_out = f' Left out of the pipeline: {", ".join(dropped)}.' if dropped else ''
    runner.logger.info(
        f'Self-distillation on {len(images)} images without labels, {size} an '
        f'iteration and process. They are in {_folders(images)}.{left_out}'
    )
    _warn_of_validated(runner, images)
    batches = Batches(
        images,
        pipeline,
        size,
        # that of a resumed run is known later, and set then
        seed=0,
        num_workers=labeled.num_workers if workers is None else workers,
        skip_broken=cfg['skip_broken'],
    )
    return arguments_of(cfg, batches)


def arguments_of(cfg: Mapping[str, Any], batches: Any) -> dict[str, Any]:
    """Return the arguments of :class:`Unlabeled`, model and plan left out.

    Args:
        cfg (Mapping): What :func:`check_unlabeled` returned.
        batches (Batches): The images.
    """
    keys = ('weight', 'view', 'statistics', 'confidence')
    return dict(batches=batches, **{key: cfg[key] for key in keys})


def _folders(images: Sequence[str]) -> str:
    """Write the folders of images, those with the most first, and the counts."""
    found = Counter(osp.dirname(image) or '.' for image in images).most_common()
    named = ', '.join(f'{name} ({count})' for name, count in found[:_FOLDERS])
    more = found[_FOLDERS:]
    others = f' and {len(more)} more ({sum(n for _, n in more)})' if more else ''
    return named + others


def _warn_of_validated(runner: Runner, images: Sequence[str]) -> None:
    """Warn of images without labels by which the run is validated."""
    loader = getattr(runner._val_loop, 'dataloader', None)
    dataset: Any = getattr(loader, 'dataset', None)
    if not hasattr(dataset, 'get_data_info'):
        return
    paths = [path for path in (x.get('img_path') for x in frames_of(dataset)) if path]
    # folders are few
    real = functools.lru_cache(None)(osp.realpath)

    def file(path: str) -> tuple[str, str]:
        # a link is the file that it leads to
        path = osp.realpath(path) if osp.islink(path) else path
        return real(osp.dirname(path)), osp.basename(path)

    ours = {*map(file, images)}
    found = sum(file(path) in ours for path in paths)
    if found:
        runner.logger.warning(
            f'unlabeled.data: {found} of the {len(paths)} validation images are among '
            'these. The student learns from them, so their score says less of images '
            'that it has not seen.'
        )


def _check_checkpointing(runner: Runner) -> None:
    """Refuse activation checkpointing under DDP.

    DDP expects one gradient for each parameter and iteration. The frameworks'
    checkpointing is reentrant: it gives one for each forward pass, and the images
    without labels have a pass of their own.

    Raises:
        ValueError: If a part that trains is checkpointed.
    """
    if not isinstance(runner.model, DistributedDataParallel):
        return
    found = [
        name
        for name, module in bare_model(runner).named_modules()
        if (getattr(module, 'with_cp', False) or getattr(module, 'num_cp', 0) > 0)
        and any(p.requires_grad for p in module.parameters())
    ]
    if runner.cfg.get('activation_checkpointing'):
        found.append('activation_checkpointing')
    if found:
        raise ValueError(
            f'unlabeled: the model checkpoints its activations ({found[0]}, and '
            f'{len(found) - 1} more), which fails in DDP where the model runs twice in '
            'an iteration, on images with labels and without; turn off with_cp and '
            'activation_checkpointing, or remove unlabeled'
        )


def _tried(
    cfg: Mapping[str, Any], dataset: Any, images: list[str]
) -> tuple[list[Any], Any]:
    """Return the pipeline that loads an image, and what was left out of it."""
    own = cfg['pipeline'] is not None
    transforms = cfg['pipeline'] if own else transforms_of(dataset)
    for image in images if cfg['skip_broken'] else images[:1]:
        try:
            return image_pipeline(copy.deepcopy(transforms), image, own)
        except PipelineError:
            raise
        except Exception as error:
            reason, tried = error, image
    if isinstance(reason, FileNotFoundError):
        said = f'unlabeled.data: there is no file {tried!r}'
    elif own:
        said = f'unlabeled.pipeline: it does not load {tried!r}; is it an image?'
    else:
        said = (
            f'unlabeled: the training pipeline does not load {tried!r} without its '
            'annotations; is it an image? Give a pipeline that does, '
            'unlabeled=dict(pipeline=[...])'
        )
    raise ValueError(f'{said}: {type(reason).__name__}: {reason}') from reason


def batch_size_of(loader: Any) -> int:
    """Return how many images a loader gives an iteration.

    Raises:
        ValueError: If it does not say so.
    """
    # a batch sampler, as that by aspect ratio, has it instead
    for each in (loader, getattr(loader, 'batch_sampler', None)):
        size = getattr(each, 'batch_size', None)
        if isinstance(size, int):
            return size
    raise ValueError('unlabeled.batch_size: the training loader has none: set it')


def transforms_of(dataset: Any) -> list[Any]:
    """Return copies of the transforms of a dataset, those of the one inside first.

    Raises:
        ValueError: If one cannot be copied.
    """
    inner = getattr(dataset, 'dataset', None)
    inner = next(iter(getattr(dataset, 'datasets', ())), inner)
    found = [] if inner is None else transforms_of(inner)
    own = getattr(dataset, 'pipeline', None) or ()
    return [*found, *map(_copied, getattr(own, 'transforms', own))]


def _copied(transform: Any) -> Any:
    try:
        return copy.deepcopy(transform)
    except Exception as error:
        raise ValueError(
            f'unlabeled: {type(transform).__name__} of the training pipeline cannot be '
            f'copied ({type(error).__name__}: {error}); give a pipeline without it, '
            'unlabeled=dict(pipeline=[...])'
        ) from error
