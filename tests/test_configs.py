"""Every benchmark config is its stock config plus the hook, and trains with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import load
from mmengine.hooks import EMAHook
from mmengine.registry import DATASETS
from mmengine.registry import HOOKS as HOOKS_REGISTRY
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmengine.utils import get_installed_path

import mmselfdistill
from mmselfdistill.testing.models import prepared

ROOT = Path(__file__).parent.parent / 'configs'
FAMILIES = {
    'retinanet': 'mmdet',
    'faster_rcnn': 'mmdet',
    'mask_rcnn': 'mmdet',
    'gfl': 'mmdet',
    'rtmdet': 'mmdet',
    'deeplabv3plus': 'mmseg',
    'segformer': 'mmseg',
    'swin': 'mmseg',
}
CONFIGS = sorted(path for family in FAMILIES for path in (ROOT / family).glob('*.py'))
HOOKS = {
    'generation-2x': dict(type='mmselfdistill.GenerationHook', generations=2),
    'ema-': dict(type='mmselfdistill.EMATeacherHook'),
}

each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@DATASETS.register_module()
class TinyDetection(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Two random images with boxes, and masks where the config asks for them."""

    def __init__(self, with_mask: bool) -> None:
        from mmdet.testing import demo_mm_inputs

        batch = demo_mm_inputs(
            image_shapes=(3, 64, 64),
            num_items=[3, 4],
            num_classes=80,
            with_mask=with_mask,
            use_box_type=True,
        )
        self.samples = [
            dict(inputs=image, data_samples=sample)
            for image, sample in zip(batch['inputs'], batch['data_samples'])
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


@DATASETS.register_module()
class TinySegmentation(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Two random images with label maps, some of them ignored."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmseg.structures import SegDataSample

        rng = np.random.RandomState(index)
        labels = rng.randint(0, 150, (1, 64, 64))
        labels[:, :8] = 255
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(labels)))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        image = rng.randint(0, 255, (3, 64, 64), dtype=np.uint8)
        return dict(inputs=torch.from_numpy(image), data_samples=sample)


def without_scope(value: Any) -> Any:
    """Drop what MMEngine notes on every dict that comes from another package."""
    if isinstance(value, dict):
        return {k: without_scope(v) for k, v in value.items() if k != '_scope_'}
    if isinstance(value, (list, tuple)):
        return type(value)(without_scope(v) for v in value)
    return value


def test_all_benchmarks_are_here() -> None:
    assert len(CONFIGS) == 2 * len(FAMILIES)


@each_config
def test_differs_from_stock_by_the_hook_alone(path: Path) -> None:
    (marker,) = (marker for marker in HOOKS if marker in path.stem)
    family = path.parent.name
    package = get_installed_path(MODULE2PACKAGE[FAMILIES[family]])
    stock_name = f'{path.stem.replace(marker, "")}.py'
    stock = Config.fromfile(Path(package, '.mim', 'configs', family, stock_name))
    expected = without_scope(stock.to_dict())
    expected['default_hooks']['self_distill'] = HOOKS[marker]
    assert without_scope(Config.fromfile(path).to_dict()) == expected


@pytest.mark.parametrize('family', FAMILIES)
def test_metafile_lists_the_folder(family: str) -> None:
    meta = load(str(ROOT / family / 'metafile.yml'))
    (collection,) = meta['Collections']
    assert (ROOT.parent / collection['README']).is_file()
    listed = {model['Name']: model for model in meta['Models']}
    assert set(listed) == {path.stem for path in (ROOT / family).glob('*.py')}
    for name, model in listed.items():
        assert model['Config'] == f'configs/{family}/{name}.py'
        assert model['In Collection'] == collection['Name']
        assert 'Results' not in model and 'Weights' not in model
        length = Config.fromfile(ROOT.parent / model['Config']).train_cfg
        runs = 2 if 'generation-2x' in name else 1
        claimed = model['Metadata'].get('Epochs') or model['Metadata']['Iterations']
        assert claimed == runs * (length.get('max_epochs') or length.max_iters)


@pytest.mark.parametrize('family', FAMILIES)
def test_readme_says_not_run(family: str) -> None:
    readme = (ROOT / family / 'README.md').read_text()
    for path in (ROOT / family).glob('*.py'):
        (row,) = (line for line in readme.splitlines() if f']({path.name})' in line)
        assert row.count('not run') == 2


@pytest.mark.parametrize(
    ('name', 'stock', 'labels'),
    [
        ('-1percent', 'mmdet::retinanet/retinanet_r50_fpn_90k_coco', '1@1'),
        ('-10percent', 'mmdet::retinanet/retinanet_r50_fpn_90k_coco', '1@10'),
        ('-100percent', 'mmdet::retinanet/retinanet_r50_fpn_90k_coco', None),
        (
            '-10percent',
            'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
            [*range(0, 20210, 10)],
        ),
    ],
)
def test_few_labels(name: str, stock: str, labels: str | list[int] | None) -> None:
    zoo, _, plain = stock.partition('::')
    path = ROOT / 'few_labels' / f'{Path(plain).name}{name}.py'
    assert len(path.read_text().splitlines()) <= 15
    package = get_installed_path(MODULE2PACKAGE[zoo])
    stock_cfg = Config.fromfile(Path(package, '.mim', 'configs', f'{plain}.py'))
    expected = without_scope(stock_cfg.to_dict())
    found = without_scope(Config.fromfile(path).to_dict())
    hook = found['default_hooks'].pop('self_distill')
    images = hook['unlabeled']['data']
    dataset = expected['train_dataloader']['dataset']
    if isinstance(labels, str):
        dataset['ann_file'] = f'semi_anns/instances_train2017.{labels}.json'
        # the rest of the same split
        rest = f'semi_anns/instances_train2017.{labels}-unlabeled.json'
        assert images['ann_file'] == rest
        assert images['data_root'] == dataset['data_root']
        assert images['data_prefix'] == dataset['data_prefix']
    elif labels is not None:
        dataset['indices'] = labels
    assert {key: found[key] for key in expected} == expected
    parts = {'labels', 'others', 'hook', 'pseudo'}
    assert {*found} - {*expected} <= parts
    assert HOOKS_REGISTRY.build(hook).horizon == 0.01


def test_few_labels_are_listed() -> None:
    meta = load(str(ROOT / 'few_labels' / 'metafile.yml'))
    names = {path.stem for path in (ROOT / 'few_labels').glob('*.py')}
    assert {model['Name'] for model in meta['Models']} == names
    readme = (ROOT / 'few_labels' / 'README.md').read_text()
    assert all(f'({name}.py)' in readme for name in names)


def short_run(path: Path, work_dir: Path, steps: int) -> Config:
    """Return the config with random weights, few proposals, tiny data and few steps."""
    cfg = Config.fromfile(path)
    detection = cfg.default_scope == 'mmdet'
    optimizer = cfg.optim_wrapper.optimizer.type
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = path.stem
    cfg.model = prepared(cfg.model, cfg.default_scope)
    if not detection:
        # It pads to the crop size of the real data set otherwise.
        cfg.model.data_preprocessor.size = (64, 64)
    cfg.train_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler' if detection else 'InfiniteSampler'),
        dataset=dict(type='TinyDetection', with_mask='mask-rcnn' in path.stem)
        if detection
        else dict(type='TinySegmentation'),
    )
    cfg.train_cfg['max_epochs' if detection else 'max_iters'] = steps
    # Warm-up starts at a rate that moves no float32 weight within two steps.
    cfg.param_scheduler = None
    cfg.optim_wrapper.optimizer.lr = 1e-2 if optimizer == 'SGD' else 1e-3
    cfg.default_hooks.checkpoint = None
    for stage in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{stage}_{part}'] = None
    cfg.visualizer = None
    return cfg


@each_config
def test_builds_and_steps(path: Path, tmp_path: Path) -> None:
    generations = 2 if 'generation-2x' in path.stem else 1
    # an average teaches in the second half of a run
    steps = 2 if generations == 2 else 3
    runner = Runner.from_cfg(short_run(path, tmp_path, steps))
    runner.train()

    assert runner.iter == steps * generations
    history = {
        key: scalar.data[0]
        for key, scalar in runner.message_hub.log_scalars.items()
        if key.startswith('train/')
    }
    assert np.isfinite(history['train/loss']).all()
    distilled = {k: v for k, v in history.items() if '/loss_sd_' in k}
    prefix = 'train/loss_sd_'
    terms = {key[len(prefix) :] for key in distilled}
    boxes = {'boxes'} if FAMILIES[path.parent.name] == 'mmdet' else set()
    masks = {'masks'} if path.parent.name == 'mask_rcnn' else set()
    assert terms == {'features', 'logits'} | boxes | masks
    # The last step compares a student that has moved with a still teacher.
    for key, values in distilled.items():
        assert np.isfinite(values).all() and values[-1] > -1e-6, (key, values)
    assert sum(values[-1] for values in distilled.values()) > 0
    if 'generation-2x' in path.stem:
        # The first generation has no teacher, and logs zeros.
        assert all((values[:2] == 0).all() for values in distilled.values())
    if path.parent.name == 'rtmdet':
        assert any(isinstance(hook, EMAHook) for hook in runner.hooks)
    kinds = (mmselfdistill.GenerationHook, mmselfdistill.EMATeacherHook)
    assert sum(isinstance(hook, kinds) for hook in runner.hooks) == 1
