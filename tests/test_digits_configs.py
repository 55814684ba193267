"""Every config of the digits trains and validates through its own data pipeline."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import Runner

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))

import digits  # noqa: E402

CONFIGS = sorted((ROOT / 'configs' / 'digits').glob('*.py'))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp('scenes') / 'digits'
    digits.write_digits(root, train=4, val=2, size=64, seed=0, unlabeled=4)
    return root


def steps_of(path: Path) -> int:
    """Return the steps of a generation: an average teaches in its second half."""
    return 4 if 'ema' in path.stem or 'unlabeled' in path.stem else 2


def short_run(path: Path, data: Path, work_dir: Path) -> Config:
    """Return the config with four scenes, two at a time, and a run of a few steps."""
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.experiment_name = str(work_dir), path.stem
    by_epoch = 'max_epochs' in cfg.train_cfg
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset.data_root = f'{data}/'
        loader.dataset.pop('indices', None)
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        if split != 'train' and by_epoch:
            evaluator = cfg[f'{split}_evaluator']
            evaluator.ann_file = f'{data}/annotations/instances_val2017.json'
    # an epoch has two steps
    length = steps_of(path) // 2 if by_epoch else steps_of(path)
    cfg.train_cfg.update({'max_epochs' if by_epoch else 'max_iters': length})
    cfg.train_cfg.val_interval = length
    if 'unlabeled' in path.stem:
        hook = cfg.default_hooks.self_distill
        hook.unlabeled.update(data=f'{data}/unlabeled2017', num_workers=0)
        if path.stem.startswith('unet'):
            # random weights are not sure of anything
            hook.terms.pseudo_labels = dict(threshold=0.0)
    # the warm-up's rate moves no weight within two steps, and its end is later
    cfg.param_scheduler = None
    # some random weights predict no box, and the evaluator then has no AP
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_trains_and_validates(path: Path, scenes: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(short_run(path, scenes, tmp_path))
    runner.train()
    generations = 2 if 'generation' in path.stem else 1
    assert runner.iter == steps_of(path) * generations
    logged = runner.message_hub.log_scalars
    segments = path.stem.endswith('digits-64x64')
    metric = 'val/mIoU' if segments else 'coco/bbox_mAP'
    assert len([key for key in logged if key.endswith(metric)]) == 1
    terms = {key[14:] for key in logged if key.startswith('train/loss_sd_')}
    if not any(word in path.stem for word in ('generation', 'ema', 'unlabeled')):
        assert terms == set()
        return
    boxes = set() if metric == 'val/mIoU' else {'boxes'}
    masks = {'masks'} if path.stem.startswith('mask') else set()
    everywhere = {'logits'} | boxes
    if 'unlabeled' not in path.stem:
        assert terms == {'features'} | everywhere | masks
    elif segments:
        assert terms == {'pseudo_labels_unlabeled'}
    else:
        assert terms == everywhere | {f'{term}_unlabeled' for term in everywhere}
    last = [logged[f'train/loss_sd_{term}'].data[0][-1] for term in terms]
    assert sum(last) > 0


def test_metafile_lists_the_folder() -> None:
    meta = load(str(ROOT / 'configs' / 'digits' / 'metafile.yml'))
    assert {model['Name'] for model in meta['Models']} == {p.stem for p in CONFIGS}
