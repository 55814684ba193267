"""Small models of a zoo's configs, and noise that they train on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmseg.models.decode_heads import FCNHead
from torch import nn

from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.models import calibrate, enter, prepared
from mmselfdistill.zoo import read_config, zoo_folder


class TooWide(FCNHead):
    """A head that takes maps of 12x12 cells and more."""

    def forward(self, inputs: Any) -> Any:
        if inputs[-1].shape[-1] < 12:
            raise ValueError('too small')
        return super().forward(inputs)


def test_weights_are_left_out_and_counts_made_small() -> None:
    model = dict(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x'), depth=50),
        timm=dict(pretrained=True),
        clip=dict(templates='vild'),
        head=dict(init_cfg=dict(type='Normal'), sampler=dict(num=512), order=('a',)),
        teacher_config='configs/gfl/gfl.py',
    )
    teacher = str(zoo_folder('mmdet') / 'gfl' / 'gfl.py')
    assert prepared(model, 'mmdet') == dict(
        backbone=dict(init_cfg=None, depth=50),
        timm=dict(pretrained=False),
        clip=dict(templates=['a photo of a {}.']),
        head=dict(init_cfg=dict(type='Normal'), sampler=dict(num=32), order=('a',)),
        teacher_config=teacher,
    )


def test_a_transformer_bound_to_a_size_is_built_for_small_images() -> None:
    cfg = read_config('mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640', None)
    cfg.model.backbone.update(num_layers=1, out_indices=(0,) * 4)
    model = Builder(cfg).model(64)
    # 4x4 patches: 7x7 distances, and three of the class token
    table = model.backbone.layers[0].attn.relative_position_bias_table
    assert table.shape == (7 * 7 + 3, 12)
    assert model.data_preprocessor.size == (64, 64)


def test_noise_has_the_channels_that_are_normalised() -> None:
    name = 'swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256'
    builder = Builder(read_config(f'mmseg::{name}', None))
    try:
        model = builder.model(64)
    except AssertionError as error:
        # OneDL's: the config does not build there
        assert str(error).startswith('`mean` should have 1 or 3 values')
        pytest.skip('no preprocessor of this MMEngine takes pairs of images')
    batch = builder.batch(model, 64)
    assert batch['inputs'].shape == (2, 6, 64, 64)


def test_images_that_are_not_normalised_have_the_channels_of_the_backbone() -> None:
    cfg = read_config('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', None)
    # as MMEngine's Runner takes it, next to the model
    preprocessor = cfg.model.pop('data_preprocessor')
    preprocessor.update(mean=None, std=None)
    cfg.data_preprocessor = preprocessor
    cfg.model.backbone.in_channels = 4
    builder = Builder(cfg)
    model = builder.model(64)
    assert model.data_preprocessor.size == (64, 64)
    assert builder.batch(model, 64)['inputs'].shape == (2, 4, 64, 64)


@pytest.mark.parametrize('channels', [1, 4])
def test_noise_for_a_detector_has_the_channels_of_its_backbone(channels: int) -> None:
    cfg = read_config('mmselfdistill::digits/retinanet_r18_fpn_50e_digits', None)
    # one mean is that of all channels
    cfg.model.data_preprocessor.update(mean=[110.0], std=[50.0], bgr_to_rgb=False)
    cfg.model.backbone.in_channels = channels
    builder = Builder(cfg)
    batch = builder.batch(builder.model(64), 64)
    assert batch['inputs'].shape == (2, channels, 64, 64)


TRANSFORMERS = """
from pathlib import Path

class BertConfig:
    def __init__(self, **settings):
        self.settings = settings

class BertModel:
    def __init__(self, config):
        self.config = config

    def save_pretrained(self, folder):
        (Path(folder) / 'config.json').write_text(str(self.config.settings))
"""


def test_the_users_language_model_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the package itself is large, and only writes files here
    package, own = tmp_path / 'site' / 'transformers', tmp_path / 'bert'
    for folder in (package, own):
        folder.mkdir(parents=True)
    (package / '__init__.py').write_text(TRANSFORMERS)
    monkeypatch.syspath_prepend(package.parent)
    for name in ('vocab.txt', 'config.json'):
        (own / name).write_text('mine')
    head = dict(lang_model_name=str(own))
    model = dict(language_model=dict(name=str(own)), bbox_head=head)
    try:
        enter('mmdet', model)
    finally:
        sys.modules.pop('transformers', None)
    assert {file.read_text() for file in own.iterdir()} == {'mine'}
    small = Path(model['language_model']['name'])
    assert small != own and Path(head['lang_model_name']) == small
    assert (small / 'vocab.txt').read_text().splitlines()[-2:] == ['person', 'car']


def test_norms_go_half_way_to_the_statistics_of_the_batch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=0.1)

        def forward(self, inputs: torch.Tensor, mode: str) -> torch.Tensor:
            return self.norm(inputs)

    model, x = Model(), 5 + 2 * torch.randn(16, 3)
    calibrate(model, dict(inputs=x))
    torch.testing.assert_close(model.norm.running_mean, x.mean(0) / 2)
    torch.testing.assert_close(model.norm.running_var, (1 + x.var(0)) / 2)
    assert model.norm.momentum == 0.1


def test_the_first_size_is_one_on_which_the_model_trains() -> None:
    cfg = read_config('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', None)
    cfg.model.backbone.depth = 18
    cfg.model.decode_head.update(in_channels=512)
    cfg.model.auxiliary_head.update(in_channels=256)
    assert Builder(cfg).first_size() == 64
    # 64 pixels are 8 cells of its features: fewer than this head takes
    cfg.model.decode_head.update(type=TooWide)
    assert Builder(cfg).first_size() == 128
    cfg.model.decode_head.update(num_classes='many')
    with pytest.raises(TypeError):
        Builder(cfg).first_size()
