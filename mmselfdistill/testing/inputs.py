"""Small batches of noise, in the form that each kind of model trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from mmengine.structures import InstanceData, LabelData, PixelData
from torch import Tensor, nn


def raw_batch(zoo: str, model: Any, cfg: Any, size: int, masks: bool) -> dict[str, Any]:
    """Return two images with labels, as the model's preprocessor takes them.

    The preprocessor is what says which kind of data a model trains on.

    Args:
        zoo (str): 'mmdet', 'mmseg' or 'mmpretrain'.
        model (BaseModel): The model.
        cfg (dict): Its config.
        size (int): Side of the images in pixels.
        masks (bool): Whether the objects of a detector have masks.
    """
    kind = type(model.data_preprocessor).__name__
    takes_images = getattr(model.data_preprocessor, 'use_det_processor', False)
    classes = min([10, *values_of(cfg, 'num_classes', 'num_things_classes')])
    if hasattr(model, 'language_model'):
        # as many as the text below has phrases
        classes = 2
    channels = _channels(model, cfg)
    if zoo == 'mmseg':
        data = _segmentation(size, classes, channels)
    elif zoo == 'mmpretrain':
        data = _classification(size, classes, channels)
    elif kind == 'ReIDDataPreprocessor':
        data = _identities(size)
    elif kind == 'MultiBranchDataPreprocessor':
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        parts = {n: _detection(size, classes, masks, channels) for n in branches}
        data = {
            key: {name: part[key] for name, part in parts.items()}
            for key in ('inputs', 'data_samples')
        }
    elif kind == 'TrackDataPreprocessor' and not takes_images:
        data = _video(size, classes)
    else:
        data = _detection(size, classes, masks, channels)
    return data


def write_language_model(folder: Path) -> None:
    """Write a small BERT that knows a few words, in place of one to download."""
    from transformers import BertConfig, BertModel

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'person', 'car']
    (folder / 'vocab.txt').write_text('\n'.join(words))
    config = BertConfig(
        vocab_size=len(words), num_hidden_layers=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)


def values_of(cfg: Any, *keys: str) -> Iterator[int]:
    """Yield the whole numbers that a config holds under some keys, at any depth."""
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            if key in keys and isinstance(value, int):
                yield max(value, 1)
            yield from values_of(value, *keys)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from values_of(value, *keys)


def _detection(size: int, classes: int, masks: bool, channels: int) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs

    data: dict[str, Any] = demo_mm_inputs(
        2,
        (channels, size, size),
        num_items=[3, 4],
        with_mask=masks,
        with_semantic=True,
        texts=['person . car .'] * 2,
        custom_entities=True,
    )
    for sample in data['data_samples']:
        sample.gt_instances.labels %= classes
        sample.gt_sem_seg.sem_seg %= classes
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.clone())
        sample.homography_matrix = np.eye(3, dtype=np.float32)
        # as half of the images are that a pipeline makes
        sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    return data


def _video(size: int, classes: int) -> dict[str, Any]:
    from mmdet.testing import demo_track_inputs

    data: dict[str, Any] = demo_track_inputs(
        2,
        num_frames=2,
        key_frames_inds=[0],
        image_shapes=(3, size, size),
        num_items=[3, 4],
        num_classes=classes,
        with_mask=True,
    )
    for track in data['data_samples']:
        for sample in track.video_data_samples:
            count = len(sample.gt_instances)
            # the same objects in both frames
            sample.gt_instances.instances_ids = torch.arange(count)
    return data


def _identities(size: int) -> dict[str, Any]:
    from mmdet.structures import ReIDDataSample

    samples = []
    for i in range(4):
        sample = ReIDDataSample(metainfo=dict(img_shape=(2 * size, size)))
        # a triplet loss wants two images of each person
        sample.gt_label = LabelData(label=torch.tensor([i // 2]))
        samples.append(sample)
    return dict(inputs=list(_noise(4, 2 * size, size)), data_samples=samples)


def _channels(model: Any, cfg: Any) -> int:
    mean = getattr(model.data_preprocessor, 'mean', None)
    # two images on top of each other where a model tells what has changed
    if mean is not None and len(mean) > 1:
        return len(mean)
    given = (cfg.get('backbone') or {}).get('in_channels')
    if given is not None:
        return int(given)
    # one mean may be that of all channels
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def _segmentation(size: int, classes: int, channels: int) -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    shape = (size, size)
    samples = []
    for _ in range(2):
        labels = torch.randint(classes, (1, size // 8, size // 8))
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        sample = SegDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape)
        )
        sample.gt_sem_seg = PixelData(data=labels)
        sample.gt_edge_map = PixelData(data=torch.randint(2, (1, *shape)))
        sample.gt_depth_map = PixelData(data=torch.rand(1, *shape))
        samples.append(sample)
    inputs = list(_noise(2, size, size, channels))
    return dict(inputs=inputs, data_samples=samples)


def _classification(size: int, classes: int, channels: int) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(torch.randint(classes, (1,))) for _ in '12']
    return dict(inputs=list(_noise(2, size, size, channels)), data_samples=samples)


def _noise(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8)
