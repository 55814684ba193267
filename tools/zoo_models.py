"""The models of a zoo's configs, small enough to be tried on a CPU."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# weights to download, and images padded to 1024 pixels
DROPPED = ('pretrained', 'teacher_ckpt', 'batch_augments')
# counts of RoIs, queries and points that only cost time here
FEW = dict(num=32, nms_pre=100, max_per_img=50, num_queries=50, num_points=256)
FEW['sos_token_num'] = FEW['num_queries']


def prepared(model: Any, root: Path) -> Any:
    """Return a model's config without weights to download, and with few proposals."""
    if isinstance(model, dict):
        kept = {}
        for key, value in model.items():
            pretrained = isinstance(value, dict) and 'checkpoint' in value
            if key in DROPPED or pretrained:
                value = None
            if key in FEW and isinstance(value, int):
                value = min(value, FEW[key])
            kept[key] = prepared(value, root)
        return type(model)(kept)
    if isinstance(model, (list, tuple)):
        return type(model)(prepared(value, root) for value in model)
    if isinstance(model, str) and model.startswith('configs/'):
        # a path within the framework's repository: the teacher of LD
        return str(root / model[len('configs/') :])
    renamed = {
        'bert-base-uncased': f'{tempfile.gettempdir()}/zoo-bert',
        'MMSyncBN': 'BN',
    }
    return renamed.get(model, model) if isinstance(model, str) else model


def sizes_of(cfg: Any) -> list[int]:
    """Return the sizes of images to try: small, and what the config is made for."""
    made_for = (cfg.get('data_preprocessor') or {}).get('size') or [320]
    return list(dict.fromkeys([64, 128, min(640, max(made_for))]))


def build(zoo: str, cfg: Any, size: int) -> Any:
    """Return the model of a config, with random weights, for images of a size."""
    cfg = copy.deepcopy(cfg)
    if zoo == 'mmseg' and 'size' in (cfg.get('data_preprocessor') or {}):
        cfg['data_preprocessor']['size'] = (size, size)
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
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.train()
        norm.momentum = 0.5
    with torch.no_grad():
        model(**copy.deepcopy(batch), mode='loss')
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
