"""What the sweep of the zoos tries, remembers and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / 'tools'))
from zoo_configs import Entry, discover, kind_of, next_of_kind
from zoo_report import write_report
from zoo_sweep import Sweep

from mmselfdistill.testing.inputs import make_batch
from mmselfdistill.testing.models import build, calibrate, enter, prepared
from mmselfdistill.zoo import zoo_folder

ROOT = zoo_folder('mmseg')
CONFIG = """
model = dict(type='{model}', bbox_head=dict(type='{head}'))
train_dataloader = dict()
test_evaluator = dict(type='CocoMetric')
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    files = {
        'retina/r50.py': ('RetinaNet', 'RetinaHead'),
        'retina/r101.py': ('RetinaNet', 'RetinaHead'),
        'retina/r50_ghm.py': ('RetinaNet', 'GHMHead'),
        'retina/r50_third.py': ('RetinaNet', 'ThirdHead'),
        'retina/more/a.py': ('RetinaNet', 'FourthHead'),
        'fcos/fcos.py': ('FCOS', 'FCOSHead'),
        'common/schedule.py': ('FCOS', 'FCOSHead'),
    }
    for name, (model, head) in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CONFIG.format(model=model, head=head))
    (tmp_path / 'fcos' / 'tta.py').write_text('tta_model = dict(type="TTA")')
    (tmp_path / 'needy').mkdir()
    (tmp_path / 'needy' / 'needy.py').write_text(
        "custom_imports = dict(imports=['no_such_module'], "
        'allow_failed_imports=False)\n' + CONFIG.format(model='A', head='B')
    )
    return tmp_path


def test_a_folder_is_stood_for_by_the_shortest_names_of_two_kinds(zoo: Path) -> None:
    assert [entry.name for entry in discover('mmdet', zoo)] == [
        'fcos/fcos.py',
        # what cannot be read is tried too, and says why
        'needy/needy.py',
        'retina/r50.py',
        'retina/r50_ghm.py',
    ]
    assert kind_of(zoo / 'fcos/tta.py') is None


def test_a_filter_does_not_change_what_stands_for_a_folder(zoo: Path) -> None:
    names = [entry.name for entry in discover('mmdet', zoo, 'r50')]
    assert names == ['retina/r50.py', 'retina/r50_ghm.py']


def test_the_next_of_a_kind_is_of_that_kind(zoo: Path) -> None:
    other = next_of_kind(Entry('mmdet', 'retina/r50.py'), zoo)
    assert other == Entry('mmdet', 'retina/r101.py')
    assert next_of_kind(Entry('mmdet', 'fcos/fcos.py'), zoo) is None


def test_weights_are_left_out_and_counts_made_small() -> None:
    model = dict(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x'), depth=50),
        timm=dict(pretrained=True),
        clip=dict(templates='vild'),
        head=dict(init_cfg=dict(type='Normal'), sampler=dict(num=512), order=('a',)),
        teacher_config='configs/gfl/gfl.py',
    )
    assert prepared(model, Path('/zoo')) == dict(
        backbone=dict(init_cfg=None, depth=50),
        timm=dict(pretrained=False),
        clip=dict(templates=['a photo of a {}.']),
        head=dict(init_cfg=dict(type='Normal'), sampler=dict(num=32), order=('a',)),
        teacher_config='/zoo/gfl/gfl.py',
    )


def test_a_transformer_bound_to_a_size_is_built_for_small_images() -> None:
    enter('mmseg', {})
    cfg = Config.fromfile(
        ROOT / 'beit' / 'beit-base_upernet_8xb2-160k_ade20k-640x640.py'
    )
    cfg.model.backbone.update(num_layers=1, out_indices=(0,) * 4)
    model = build('mmseg', prepared(cfg.model, ROOT), 64)
    # 4x4 patches: 7x7 distances, and three of the class token
    table = model.backbone.layers[0].attn.relative_position_bias_table
    assert table.shape == (7 * 7 + 3, 12)
    assert model.data_preprocessor.size == (64, 64)


def test_noise_has_the_channels_that_are_normalised() -> None:
    enter('mmseg', {})
    name = 'swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py'
    cfg = Config.fromfile(ROOT / 'swin' / name)
    try:
        model = build('mmseg', prepared(cfg.model, ROOT), 64)
    except AssertionError as error:
        # OneDL's: the config does not build there
        assert str(error).startswith('`mean` should have 1 or 3 values')
        pytest.skip('no preprocessor of this MMEngine takes pairs of images')
    batch = make_batch('mmseg', model, cfg.model, 64, False)
    assert batch['inputs'].shape == (2, 6, 64, 64)


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


def test_results_of_another_version_do_not_count(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, jobs=1, timeout=1)
    lines = [dict(key='a', version=sweep.version), dict(key='b', version='older')]
    sweep.results.write_text('\n'.join(json.dumps(line) for line in lines))
    assert list(sweep.records()) == ['a']


def test_the_report_counts_its_rows(tmp_path: Path) -> None:
    def term(equal: float) -> dict[str, Any]:
        return dict(equal=equal, apart=0.5)

    write_report(
        tmp_path / 'zoo.md',
        [
            dict(
                key='mmdet::a/a.py',
                part='done',
                terms=dict(logits=term(0.0)),
                unlabeled=dict(error='ValueError: no text'),
            ),
            dict(
                key='mmdet::b/b.py',
                part='done',
                terms=dict(boxes=term(1e-8)),
                unlabeled=dict(terms=['boxes', 'proposals']),
            ),
            dict(key='mmdet::c/c.py', part='plugin', error='KeyError: c'),
            dict(key='mmseg::d/d.py', part='stock', error='No module | at all'),
        ],
        '::[a-d]',
    )
    text = (tmp_path / 'zoo.md').read_text()
    for line in (
        'Only configs whose name matches `::[a-d]` were tried.',
        '| tried | 4 |',
        '| train in stock | 3 |',
        '| train with the plugin | 2 |',
        '| of these, on images without labels too | 1 |',
        '| a/a |  | logits | all exactly 0 | no | trains |',
        '- a/a: ValueError: no text',
        '| all terms exactly 0 at equal weights | 1 |',
        '| largest term at equal weights, of its scale | 2e-08 |',
        '| b/b |  | boxes | boxes 2e-08 | all terms | trains |',
        '| c/c |  |  |  |  | FAILS: KeyError: c |',
        '| d/d |  |  |  |  | does not train in stock: No module \\| at all |',
    ):
        assert line in text
