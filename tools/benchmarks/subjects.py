"""The models whose cost is measured, with random weights, and batches of noise."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmselfdistill.commands.quiet import quietly
from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.models import calibrate
from mmselfdistill.zoo import read_config

MODELS = (
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    'mmdet::gfl/gfl_r50_fpn_1x_coco',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
)
# so small that random weights neither learn nor diverge while they are measured
LEARNING_RATE = 1e-7
# what the wrappers of mixed precision take besides
MIXED = ('loss_scale', 'dtype', 'use_fsdp', 'cast_model_dtype')


@dataclass
class Subject:
    """A model in training, and one batch for it.

    Args:
        model (BaseModel): On the device, in training mode.
        wrapper (OptimWrapper): The config's, with a tiny learning rate.
        batch (dict): ``inputs`` and ``data_samples``, preprocessed.
        raw (dict): The same, as the model's preprocessor takes it.
    """

    model: Any
    wrapper: Any
    batch: dict[str, Any]
    raw: dict[str, Any]

    def loss(self, batch: dict[str, Any]) -> Any:
        """Return the sum of the model's losses of a batch."""
        with self.wrapper.optim_context(self.model):
            losses = self.model(**batch, mode='loss')
        return self.model.parse_losses(losses)[0]

    def copied_batch(self) -> dict[str, Any]:
        """Return a batch that a model may write into."""
        return copy.deepcopy(self.batch)


def device() -> torch.device:
    """Return the device that is measured: CUDA where there is one, else the CPU."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def device_name() -> str:
    """Return the device's name, for people."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f'CPU, {torch.get_num_threads()} threads'


def make_subject(name: str, size: int, count: int, amp: str = 'none') -> Subject:
    """Build the model of a config with random weights, its optimizer and its batch.

    Args:
        name (str): Path of a config, or its name in a zoo.
        size (int): Side of the images in pixels.
        count (int): The number of images in the batch.
        amp (str): 'none', 'float16' or 'bfloat16'. Defaults to 'none'.
    """
    return subject_of(read_config(name, None), size, count, amp)


def subject_of(cfg: Config, size: int, count: int, amp: str = 'none') -> Subject:
    """Build the model of a config that was read: see :func:`make_subject`."""
    with quietly():
        builder = Builder(cfg, few={})
        model = builder.model(size).to(device())
    # each has two images
    raws = [builder.raw_batch(model, size) for _ in range((count + 1) // 2)]
    raw = {key: [x for each in raws for x in each[key]][:count] for key in raws[0]}
    batch = model.data_preprocessor(copy.deepcopy(raw), True)
    for _ in range(3):
        calibrate(model, batch)
    model.train()
    return Subject(model, _wrapper(model, cfg, amp), batch, raw)


def _wrapper(model: Any, cfg: Config, amp: str) -> Any:
    settings = copy.deepcopy(cfg.optim_wrapper)
    settings.optimizer.lr = LEARNING_RATE
    settings.pop('accumulative_counts', None)
    if amp == 'none':
        settings.type = 'OptimWrapper'
        for key in MIXED:
            settings.pop(key, None)
    else:
        settings.update(type='AmpOptimWrapper', dtype=amp)
    return build_optim_wrapper(model, settings)
