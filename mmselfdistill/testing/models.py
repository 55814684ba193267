"""The models of a zoo's configs, small enough to be tried on a CPU."""

from __future__ import annotations

import contextlib
import copy
import importlib
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Mapping

import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmselfdistill.testing.inputs import write_language_model
from mmselfdistill.zoo import zoo_folder

# weights to download, and images padded to 1024 pixels
DROPPED = ('pretrained', 'teacher_ckpt', 'batch_augments')
# counts of RoIs, queries and points that only cost time here
FEW = dict(num=32, nms_pre=100, max_per_img=50, num_queries=50, num_points=256)
FEW['sos_token_num'] = FEW['num_queries']


def enter(zoo: str, model: Any) -> None:
    """Register what a framework has, and tell a model what a Runner would.

    Args:
        zoo (str): The framework.
        model (dict): The model's config; the language model that it names is
            replaced by a small one.
    """
    importlib.import_module(f'{zoo}.utils').register_all_modules(True)
    init_default_scope(zoo)
    for name, value in dict(iter=0, epoch=0, max_iters=1000, max_epochs=12).items():
        MessageHub.get_current_instance().update_info(name, value)
    if 'language_model' in model and find_spec('transformers'):
        # in a folder of its own: the name may be the folder of the user's weights
        _rename(model, model['language_model']['name'], _language_model().name)


def _rename(cfg: Any, old: str, new: str) -> None:
    # GLIP's head names it too
    for key, value in cfg.items():
        if value == old:
            cfg[key] = new
        elif isinstance(value, dict):
            _rename(value, old, new)


@lru_cache(maxsize=None)
def _language_model() -> tempfile.TemporaryDirectory[str]:
    # it is removed when the process ends
    folder = tempfile.TemporaryDirectory(prefix='mmselfdistill-')
    write_language_model(Path(folder.name))
    return folder


def wants_masks(cfg: Any) -> bool:
    """Say whether a config's pipeline loads the masks of objects."""
    pipeline = str(cfg.get('train_dataloader'))
    return "'with_mask': True" in pipeline or 'LoadPanoptic' in pipeline


def prepared(model: Any, zoo: str, few: Mapping[str, int] = FEW) -> Any:
    """Return a model's config without weights to download, and with few proposals.

    Args:
        model (dict): The config's ``model``, or a part of it.
        zoo (str): The framework.
        few (Mapping): The largest value of some keys. Defaults to those that cost
            time and change nothing else.
    """
    if isinstance(model, dict):
        kept = {}
        for key, value in model.items():
            pretrained = isinstance(value, dict) and 'checkpoint' in value
            if key in DROPPED or pretrained:
                # timm asks for a bool
                value = False if value is True else None
            if key in few and isinstance(value, int):
                value = min(value, few[key])
            kept[key] = prepared(value, zoo, few)
        return type(model)(kept)
    if isinstance(model, (list, tuple)):
        return type(model)(prepared(value, zoo, few) for value in model)
    if isinstance(model, str) and model.startswith('configs/'):
        # a path within the framework's repository: the teacher of LD
        return str(zoo_folder(zoo) / model[len('configs/') :])
    renamed: dict[str, Any] = {
        'MMSyncBN': 'BN',
        # one sentence a class, where CLIP's text encoder averages many
        'vild': ['a photo of a {}.'],
    }
    return renamed.get(model, model) if isinstance(model, str) else model


def size_of(cfg: Any) -> int:
    """Return the side of the images that a model is made for, at most 640."""
    made_for = (cfg.get('data_preprocessor') or {}).get('size') or [320]
    return int(min(640, max(made_for)))


def sizes_of(cfg: Any) -> list[int]:
    """Return the sizes of images to try: small, and what the config is made for."""
    return list(dict.fromkeys([64, 128, size_of(cfg)]))


def build(zoo: str, cfg: Any, size: int) -> Any:
    """Return the model of a config, with random weights, for images of a size."""
    cfg = copy.deepcopy(cfg)
    preprocessor = cfg.get('data_preprocessor') or {}
    if zoo == 'mmseg' and 'size' in preprocessor:
        preprocessor['size'] = (size, size)
    if zoo == 'mmseg' and 'size_divisor' in preprocessor:
        preprocessor['size_divisor'] = size
    # transformers whose positions are bound to one size of image
    if 'img_size' in (cfg.get('backbone') or {}):
        cfg['backbone']['img_size'] = (size, size)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg))
    # parts of SAN and TridentNet are made to be loaded, and hold anything until then
    with contextlib.suppress(AttributeError):
        model.init_weights()
    for parameter in model.parameters():
        if not parameter.isfinite().all() or parameter.abs().max() > 1e3:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def calibrate(model: nn.Module, batch: dict[str, Any]) -> None:
    """Move the statistics of batch norms half way to those of the batch.

    Deep models with random weights, and norms that do nothing, overflow; half way,
    because a map of one pixel has hardly a variance to divide by.
    """
    # an eps of 0 is that of norms that never train
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.eps > 0]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.train()
        norm.momentum = 0.5
    with torch.no_grad():
        model(**copy.deepcopy(batch), mode='loss')
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
