"""Runs under MMEngine's FlexibleRunner, which resumes before hooks begin."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.runner import FlexibleRunner

from mmselfdistill.hooks import EMATeacherHook

ROOT = Path(__file__).parents[2]
BASE = 0.01  # learning rate
GENERATIONS = dict(type='mmselfdistill.GenerationHook', generations=2)


def dataset() -> Any:
    batch = demo_mm_inputs(image_shapes=(3, 64, 64), num_items=[2, 2], num_classes=10)
    pairs = zip(batch['inputs'], batch['data_samples'])
    return [dict(inputs=image, data_samples=sample) for image, sample in pairs]


def train(
    work_dir: Path, stop_at: int, resume: bool, hook: Any = GENERATIONS
) -> tuple[Any, list[float]]:
    """Train 4 iterations, and return the learning rate of each."""
    cfg = Config.fromfile(ROOT / 'configs/digits/retinanet_r18_fpn_50e_digits.py')
    rates: list[float] = []
    runner = FlexibleRunner(
        model=cfg.model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            dataset=dataset(),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=BASE)),
        param_scheduler=dict(type='PolyLR', end=4, eta_min=0, by_epoch=False),
        default_hooks=dict(
            self_distill=hook,
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
        ),
        resume=resume,
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=f'flexible-{stop_at}-{resume}',
    )

    class StopError(Exception):
        pass

    def before_train_iter(runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == stop_at:
            raise StopError
        rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    # the last hook: it sees the learning rate that the step will have
    runner.hooks[-1].before_train_iter = before_train_iter
    with suppress(StopError):
        runner.train()
    return runner, rates


def test_resumed_generations_begin_with_the_first_learning_rate(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    decay = [BASE * (1 - i / 3) for i in range(4)]
    _, first = train(tmp_path, stop_at=2, resume=False)
    _, rest = train(tmp_path, stop_at=8, resume=True)
    torch.testing.assert_close(first + rest, decay + decay)


def test_what_could_not_be_resumed_is_refused(tmp_path: Path) -> None:
    projected = dict(type='FeatureMSELoss', projector=32)
    hook = dict(type='mmselfdistill.EMATeacherHook', terms=dict(features=projected))
    message = 'terms: features have parameters, and FlexibleRunner loads the optimizer'
    with pytest.raises(ValueError, match=message):
        train(tmp_path, 1, resume=False, hook=hook)


def test_images_without_labels_go_on_where_the_run_was_stopped(tmp_path: Path) -> None:
    images = tmp_path / 'images'
    images.mkdir()
    for i in range(5):
        noise = np.random.RandomState(i).randint(256, size=(64, 64, 3))
        mmcv.imwrite(noise.astype(np.uint8), str(images / f'{i}.png'))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    hook = dict(
        type='mmselfdistill.EMATeacherHook',
        momentum=0.5,
        schedule='constant',
        unlabeled=dict(data=str(images), pipeline=pipeline),
    )
    found = []
    for name, stops in dict(whole=[8], parts=[2, 8]).items():
        for i, stop in enumerate(stops):
            torch.manual_seed(0)
            runner, _ = train(tmp_path / name, stop, resume=i > 0, hook=hook)
        (ours,) = (h for h in runner.hooks if isinstance(h, EMATeacherHook))
        terms = runner.message_hub.get_scalar('train/loss_sd_logits_unlabeled')
        assert ours.distiller.unlabeled.used == 4
        found.append((runner.model.state_dict(), list(terms.data[0])))
    (whole, terms), (parts, rest) = found
    assert min(terms) > 0
    assert rest[-2:] == terms[-2:]
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
