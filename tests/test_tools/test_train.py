"""The stock launchers and ours, as a user runs them, on data sets of a few images."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import init_default_scope
from mmengine.utils import get_installed_path

import mmselfdistill  # noqa: F401  (checkpoints of MMEngine load)

TOOLS = Path(__file__).parents[2] / 'tools'
sys.path.append(str(TOOLS))
import train  # noqa: E402

STOCK = {
    zoo: Path(get_installed_path(MODULE2PACKAGE[zoo]), '.mim', 'tools', 'train.py')
    for zoo in ('mmdet', 'mmseg')
}

DETECTOR = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py',
          'mmdet::_base_/default_runtime.py']
classes = ('a', 'b')
model = dict(
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False,
                  init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0))
pipeline = [dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', data_root='DATA', ann_file='coco.json',
                 metainfo=dict(classes=classes), data_prefix=dict(img='images/'),
                 pipeline=pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root='DATA', ann_file='coco.json',
                 metainfo=dict(classes=classes), data_prefix=dict(img='images/'),
                 test_mode=True, pipeline=pipeline))
test_evaluator = dict(type='CocoMetric', ann_file='DATA/coco.json', metric='bbox')
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""

SEGMENTOR = """
_base_ = ['MMSEG/_base_/models/fcn_r50-d8.py', 'MMSEG/_base_/default_runtime.py']
norm_cfg = dict(type='BN')
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(depth=18, base_channels=8, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=64, channels=16, num_classes=150, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=150,
                        norm_cfg=norm_cfg))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='ADE20KDataset', data_root='DATA',
                 data_prefix=dict(img_path='images', seg_map_path='labels'),
                 pipeline=[dict(type='LoadImageFromFile'),
                           dict(type='LoadAnnotations', reduce_zero_label=True),
                           dict(type='PackSegInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=8)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8))
"""


def write_data(root: Path) -> None:
    """Write four images of 64 px with boxes (COCO) and label maps (ADE20K)."""
    rng = np.random.RandomState(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        x, y, w, h = (int(v) for v in rng.randint(8, 32, 4))
        label = number % 2 + 1
        image = rng.randint(0, 64, (64, 64, 3), dtype=np.uint8)
        labels = np.full((64, 64), 3, dtype=np.uint8)
        image[y : y + h, x : x + w] = 200 * (label - 1)
        labels[y : y + h, x : x + w] = label
        cv2.imwrite(str(root / 'images' / f'{number}.jpg'), image)
        cv2.imwrite(str(root / 'labels' / f'{number}.png'), labels)
        images.append(dict(id=number, file_name=f'{number}.jpg', width=64, height=64))
        annotations.append(
            dict(
                id=number,
                image_id=number,
                category_id=label,
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
            )
        )
    categories = [dict(id=i, name=name) for i, name in ((1, 'a'), (2, 'b'))]
    coco = dict(images=images, annotations=annotations, categories=categories)
    (root / 'coco.json').write_text(json.dumps(coco))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    write_data(root)
    for name, text in (('mmdet', DETECTOR), ('mmseg', SEGMENTOR)):
        text = text.replace('DATA', str(root))
        # OneDL's MMEngine does not know its own mmseg:: until we are imported
        text = text.replace('MMSEG', str(STOCK['mmseg'].parents[1] / 'configs'))
        (root / f'{name}.py').write_text(text)
    return root


def run(*command: object, **environment: str) -> str:
    """Run a tool and return what it printed; a failure shows that too."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [str(part) for part in command],
        env={**env, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Return what the Runner logged, an entry an iteration."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]


def distilled(entry: dict[str, Any]) -> float:
    """Return the sum of all terms of an entry; fails if there is none."""
    terms = [value for key, value in entry.items() if key.startswith('loss_sd_')]
    assert terms
    return sum(terms)


def build_stock(config: Path) -> torch.nn.Module:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    return MODELS.build(cfg.model)


def load_strictly(config: Path, checkpoint: Path) -> dict[str, Any]:
    loaded = torch.load(checkpoint, map_location='cpu', weights_only=True)
    build_stock(config).load_state_dict(loaded['state_dict'], strict=True)
    return loaded


@pytest.mark.parametrize('framework', ['mmdet', 'mmseg'])
def test_stock_tool_with_one_flag(framework: str, data: Path, tmp_path: Path) -> None:
    config = data / f'{framework}.py'
    flag = 'default_hooks.self_distill.type=mmselfdistill.EMATeacherHook'
    run(
        *(sys.executable, STOCK[framework], config),
        *('--work-dir', tmp_path, '--cfg-options', flag),
    )
    entries = scalars(tmp_path)
    assert len(entries) == 8
    # An EMA teacher keeps silent in the first 15 % of the run.
    assert distilled(entries[0]) == 0
    assert distilled(entries[-1]) > 0
    last = tmp_path / (tmp_path / 'last_checkpoint').read_text()
    state = load_strictly(config, last)['mmselfdistill']
    assert state['hook'] == 'EMATeacherHook' and state['updates'] == 8


@pytest.fixture(scope='module')
def generations(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of two generations of four epochs with our tool."""
    work_dir = tmp_path_factory.mktemp('generations')
    run(
        *(sys.executable, TOOLS / 'train.py', data / 'mmdet'),
        *('--self-distill', 'generation', '--work-dir', work_dir),
        *('--cfg-options', 'default_hooks.self_distill.loss_weight=2'),
    )
    return work_dir


def test_generations_with_our_tool(data: Path, generations: Path) -> None:
    entries = scalars(generations)
    assert len(entries) == 2 * 4 * 2
    assert all(distilled(entry) == 0 for entry in entries[:8])
    assert distilled(entries[-1]) > 0
    epochs = {f'epoch_{n}.pth' for n in (2, 4, 6, 8)}
    assert {path.name for path in generations.glob('*.pth')} == epochs
    first = load_strictly(data / 'mmdet.py', generations / 'epoch_4.pth')
    second = load_strictly(data / 'mmdet.py', generations / 'epoch_8.pth')
    assert first['mmselfdistill']['teacher'] is None
    # The teacher of the second generation is the student that ended the first.
    teacher = second['mmselfdistill']['teacher']
    assert teacher.keys() == first['state_dict'].keys()
    for key, tensor in first['state_dict'].items():
        assert torch.equal(teacher[key], tensor), key


def test_extracted_teacher_is_stock_and_teaches(
    data: Path, generations: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / 'teacher.pth'
    run(
        *(sys.executable, TOOLS / 'extract_teacher.py'),
        *(generations / 'epoch_8.pth', teacher),
    )
    load_strictly(data / 'mmdet.py', teacher)
    printed = run(
        *(sys.executable, TOOLS / 'test.py', data / 'mmdet.py', teacher),
        *('--work-dir', tmp_path / 'test', '--out', tmp_path / 'predictions.pkl'),
    )
    assert 'coco/bbox_mAP' in printed
    assert (tmp_path / 'predictions.pkl').is_file()
    work_dir = tmp_path / 'train'
    run(
        *(sys.executable, TOOLS / 'train.py', data / 'mmdet.py'),
        *('--self-distill', teacher, '--work-dir', work_dir),
    )
    # A fixed teacher teaches from the first iteration.
    assert distilled(scalars(work_dir)[0]) > 0


def test_two_processes_on_the_cpu(data: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    run(
        *('bash', TOOLS / 'dist_train.sh', data / 'mmseg.py', 2),
        *('--self-distill', 'generation', '--interval', 4, '--work-dir', tmp_path),
        BACKEND='gloo',
        PORT=port,
        PYTHON=sys.executable,
    )
    entries = scalars(tmp_path)
    assert len(entries) == 8
    assert all(distilled(entry) == 0 for entry in entries[:4])
    assert distilled(entries[-1]) > 0
    load_strictly(data / 'mmseg.py', tmp_path / 'iter_8.pth')


def prepare(*flags: object) -> Config:
    return train.prepare(train.build_parser().parse_args([str(f) for f in flags]))


def hook_of(*flags: object) -> dict[str, Any]:
    return dict(prepare(*flags).default_hooks.self_distill)


def test_flags_become_the_hook(data: Path, tmp_path: Path) -> None:
    kind = 'mmselfdistill.GenerationHook'
    det = (data / 'mmdet.py', '--self-distill')
    seg = (data / 'mmseg.py', '--self-distill')
    assert hook_of(*det, 'generation') == dict(type=kind, generations=2)
    assert hook_of(*det, 'generation', '--generations', 3, '--student', 'reinit') == (
        dict(type=kind, generations=3, student='reinit')
    )
    for flags, by_epoch in ((det, True), (seg, False)):
        assert hook_of(*flags, 'generation', '--interval', 5) == (
            dict(type=kind, interval=5, by_epoch=by_epoch)
        )
    assert hook_of(*det, 'ema') == dict(type='mmselfdistill.EMATeacherHook')
    weights = tmp_path / 'weights.pth'
    weights.touch()
    for teacher in (str(weights), 'https://host/weights.pth'):
        assert hook_of(*det, teacher) == (
            dict(type='mmselfdistill.SelfDistillHook', teacher=teacher)
        )
    # a resumed run has its teacher in its own checkpoint
    assert hook_of(*det, 'gone.pth', '--resume')['teacher'] == 'gone.pth'
    ours = ('mmselfdistill::gfl/gfl_r50_fpn_generation-2x1x_coco', '--self-distill')
    assert hook_of(*ours, 'ema') == dict(type='mmselfdistill.EMATeacherHook')


def test_the_flag_replaces_the_hook_whatever_its_key(
    data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'named.py'
    path.write_text(
        f'_base_ = {str(data / "mmdet.py")!r}\n'
        "default_hooks = dict(distil=dict(type='mmselfdistill.GenerationHook', "
        'interval=2))\n'
        "custom_hooks = [dict(type='SelfDistillHook', teacher='a.pth'), "
        "dict(type='EMAHook')]\n"
    )
    cfg = prepare(path, '--self-distill', 'ema')
    assert cfg.default_hooks.self_distill == dict(type='mmselfdistill.EMATeacherHook')
    assert 'distil' not in cfg.default_hooks
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']


def test_usual_flags(data: Path) -> None:
    config = data / 'mmdet.py'
    cfg = prepare(config)
    assert 'self_distill' not in cfg.default_hooks
    assert cfg.work_dir == 'work_dirs/mmdet' and not cfg.get('resume')
    assert prepare(config, '--self-distill', 'ema').work_dir == 'work_dirs/mmdet_ema'
    cfg = prepare(config, '--resume', '--amp', '--auto-scale-lr', '--work-dir', 'here')
    assert (cfg.resume, cfg.load_from, cfg.work_dir) == (True, None, 'here')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic' and cfg.auto_scale_lr.enable
    assert prepare(config, '--resume', 'last.pth').load_from == 'last.pth'


@pytest.mark.parametrize(
    ('name', 'scope', 'model'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco', 'mmdet', 'RetinaNet'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'mmdet', 'RetinaNet'),
        (
            'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
            'mmseg',
            'EncoderDecoder',
        ),
        (
            'mmselfdistill::retinanet/retinanet_r50_fpn_ema-1x_coco',
            'mmdet',
            'RetinaNet',
        ),
    ],
)
def test_zoo_names(name: str, scope: str, model: str) -> None:
    cfg = prepare(name)
    assert (cfg.default_scope, cfg.model.type) == (scope, model)
    assert cfg.work_dir == f'work_dirs/{name.rpartition("/")[2].replace(".py", "")}'


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (
            ['mmdet::retinanet/retinanet_r50_fpn_1x_coko'],
            'retinanet_r50_fpn_1x_coco.py',
        ),
        (['mmdett::retinanet/retinanet_r50_fpn_1x_coco'], 'mmdet, '),
        (['CONFIG', '--self-distill', 'genration'], "mean 'generation'"),
        (['CONFIG', '--self-distill', 'ema', '--interval', '2'], '--interval: only'),
        (['CONFIG', '--generations', '2'], 'only together with'),
    ],
)
def test_wrong_flags(flags: list[str], message: str, data: Path) -> None:
    flags = [str(data / 'mmdet.py') if f == 'CONFIG' else f for f in flags]
    with pytest.raises(SystemExit, match=message):
        prepare(*flags)


def test_config_without_base_batch_size(data: Path) -> None:
    with pytest.raises(SystemExit, match='base_batch_size'):
        prepare(data / 'mmseg.py', '--auto-scale-lr')
