"""Pictures and curves of real runs, read back from TensorBoard's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.visualization import TensorboardVisBackend
from mmseg.models import SegDataPreProcessor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mmselfdistill
from mmselfdistill.visualization.boxes import draw_boxes
from mmselfdistill.visualization.differences import Boxes
from mmselfdistill.visualization.label_maps import draw_label_maps

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

EMA = dict(
    type='mmselfdistill.EMATeacherHook',
    schedule='constant',
    momentum=0.5,
    loss_weight=2.0,
)
GENERATION = dict(type='mmselfdistill.GenerationHook', interval=1, by_epoch=False)
PICTURES = dict(type='mmselfdistill.DistillVisualizationHook', interval=1)


def config_of(
    runs: Runs, name: str, hook: dict[str, Any], pictures: dict[str, Any] | None
) -> Config:
    cfg = runs.config(name, hook, iters=4, val_interval=2)
    cfg.val_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    if 'ann_file' in cfg.val_evaluator:
        cfg.val_evaluator.ann_file = f'{runs.data}/annotations/instances_val2017.json'
    cfg.visualizer = dict(
        type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]
    )
    if pictures is not None:
        cfg.default_hooks.pictures = pictures
    return cfg


def board_of(runner: Runner) -> EventAccumulator:
    """Return what TensorBoard would show of a run."""
    board = EventAccumulator(
        str(Path(runner.log_dir, 'vis_data')), size_guidance=dict(images=0, scalars=0)
    )
    return board.Reload()


def pictures_of(runner: Runner) -> dict[str, dict[int, Any]]:
    """Return the pictures of a run, RGB, by tag and step."""
    board = board_of(runner)
    return {
        tag: {
            event.step: cv2.imdecode(
                np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR
            )[..., ::-1]
            for event in board.Images(tag)
        }
        for tag in board.Tags()['images']
    }


def by_hand(cfg: Config, runner: Runner, weights: Any) -> list[Any]:
    """Return what the stock model predicts with these weights, an image each."""
    model = MODELS.build(cfg.model)
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return [model.val_step(batch)[0] for batch in runner.val_dataloader]


@MODELS.register_module()
class Passing(SegDataPreProcessor):  # type: ignore[misc]
    """Predictions are written into what the loader gave, as MMPretrain's are."""

    def cast_data(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    ('name', 'validate'),
    [
        ('mask_rcnn', 'student'),
        ('deeplabv3plus', 'student'),
        ('deeplabv3plus', 'teacher'),
        ('the samples of the batch', 'student'),
    ],
)
def test_pictures_are_of_student_and_teacher(
    name: str, validate: str, runs: Runs
) -> None:
    # a model that has seen eight images is sure of nothing
    pictures = dict(PICTURES, score_thr=0.0)
    in_batch = name == 'the samples of the batch'
    name = 'deeplabv3plus' if in_batch else name
    cfg = config_of(runs, name, dict(GENERATION, validate=validate), pictures)
    if in_batch:
        cfg.model.data_preprocessor.type = 'Passing'
    if name == 'mask_rcnn':
        cfg.model.test_cfg.rcnn.max_per_img = 4
    runner = runs.train(cfg)
    found = pictures_of(runner)
    assert [len(steps) for steps in found.values()] == [2, 2]
    # the last validation is of the weights at the end
    weights = runs.checkpoint(cfg)
    teacher = by_hand(cfg, runner, weights['mmselfdistill']['teacher'])
    for one, other in zip(by_hand(cfg, runner, weights['state_dict']), teacher):
        path = Path(one.img_path)
        image = cv2.imread(str(path))[..., ::-1]
        meta = runner.val_dataloader.dataset.metainfo
        if name == 'deeplabv3plus':
            expected = expected_labels(image, one, other, meta)
        else:
            sides = [Boxes.of(each.pred_instances, 0.0) for each in (one, other)]
            assert [len(each) for each in sides] == [4, 4]
            expected = draw_boxes(image, *sides, meta['classes'], 0.0)
            exchanged = draw_boxes(image, *sides[::-1], meta['classes'], 0.0)
            assert (expected != exchanged).any()
        steps = found[f'student_teacher_{path.stem}']
        assert list(steps) == [2, 4]
        apart = np.abs(steps[4].astype(int) - expected)
        # of a difference that was computed by other operations: a step of its colours
        assert apart.max() <= (3 if name == 'deeplabv3plus' else 0)


def expected_labels(image: Any, one: Any, other: Any, meta: Any) -> Any:
    shares = [np.exp(each.seg_logits.data.double().numpy()) for each in (one, other)]
    shares = [each / each.sum(0) for each in shares]
    difference = 1 - np.minimum(*shares).sum(0)
    assert difference.max() > 0.005
    return draw_label_maps(
        image,
        *(each.pred_sem_seg.data[0].numpy() for each in (one, other)),
        difference.astype(np.float32),
        '1 − overlap of the class probabilities',
        meta['classes'],
        meta['palette'],
    )


def test_a_run_is_bitwise_the_same_with_pictures(runs: Runs) -> None:
    found = []
    for pictures in (None, PICTURES):
        # with dropout, and flips: the random streams decide what is seen
        cfg = config_of(runs, 'deeplabv3plus', EMA, pictures)
        cfg.train_dataloader.dataset.pipeline.insert(
            2, dict(type='RandomFlip', prob=0.5)
        )
        runner = runs.train(cfg)
        checkpoint = runs.checkpoint(cfg)
        losses = {
            key: buffer.data[0].tolist()
            for key, buffer in runner.message_hub.log_scalars.items()
            if 'time' not in key and 'memory' not in key
        }
        assert len(losses['train/loss']) == 4
        kept = ('state_dict', 'optimizer', 'param_schedulers', 'mmselfdistill')
        found.append(({key: checkpoint[key] for key in kept}, losses))
        assert len(pictures_of(runner)) == (0 if pictures is None else 2)
    assert runs.differences(*found) == []


def test_curves_of_each_term(runs: Runs) -> None:
    schedule = dict(type='linear', start=1.0, stop=0.0)
    cfg = config_of(runs, 'retinanet', dict(EMA, schedule=schedule), None)
    board = board_of(runs.train(cfg))
    curves = {
        tag: {event.step: event.value for event in board.Scalars(tag)}
        for tag in board.Tags()['scalars']
    }
    for term, weight in (('features', 0.5), ('logits', 1.0), ('boxes', 0.25)):
        weights = curves[f'sd_{term}_weight']
        # 2 is loss_weight
        expected = [2 * weight * (1 - step / 4) for step in range(4)]
        assert list(weights.values()) == pytest.approx(expected)
        raw, weighted = curves[f'sd_{term}'], curves[f'loss_sd_{term}']
        assert list(weighted) == list(raw) == list(weights) == [1, 2, 3, 4]
        # the log has means over the last iterations
        assert weighted[1] == pytest.approx(weights[1] * raw[1], rel=1e-5)
    parts = [key for key in curves if 'loss_' in key]
    assert curves['loss'][1] == pytest.approx(sum(curves[key][1] for key in parts))


def test_which_images_are_drawn(runs: Runs) -> None:
    late = dict(GENERATION, interval=2)
    cfg = config_of(runs, 'deeplabv3plus', late, dict(PICTURES, interval=2))
    cfg.train_cfg.val_interval = 1
    found = pictures_of(runs.train(cfg))
    # the first of two images, from the first teacher on
    (steps,) = found.values()
    assert list(steps) == [3, 4]
    (name,) = found
    assert name.startswith('student_teacher_') and name.endswith('1')


def warnings_of(runs: Runs, runner: Runner) -> list[str]:
    lines = runs.log(runner).splitlines()
    return [line for line in lines if 'DistillVisualizationHook' in line]


def test_says_why_nothing_is_drawn(runs: Runs) -> None:
    cfg = config_of(runs, 'deeplabv3plus', EMA, PICTURES)
    cfg.default_hooks.pop('self_distill')
    runner = runs.train(cfg)
    (line,) = (x for x in warnings_of(runs, runner) if 'WARNING' in x)
    assert line.endswith('nothing is drawn: the run has no hook of self-distillation.')
    assert pictures_of(runner) == {}


def test_a_picture_that_cannot_be_sent_ends_no_run(runs: Runs) -> None:
    cfg = config_of(runs, 'deeplabv3plus', EMA, PICTURES)
    sent: list[str] = []

    class Broken(TensorboardVisBackend):  # type: ignore[misc]
        def add_image(self, name: str, *args: Any, **kwargs: Any) -> None:
            sent.append(name)
            if len(sent) == 1:
                raise OSError('the disk is full')

    cfg.visualizer.vis_backends = [dict(type=Broken)]
    runner = runs.train(cfg)
    # two validations of two images: the second of the first is not tried
    assert len(sent) == 3 and runner.iter == 4
    (line,) = (x for x in warnings_of(runs, runner) if 'WARNING' in x)
    assert line.endswith('nothing is drawn: OSError: the disk is full.')


def test_images_of_one_name_have_pictures_of_their_own() -> None:
    hook = mmselfdistill.DistillVisualizationHook()
    runner: Any = None
    for _ in range(2):
        hook.before_val_epoch(runner)
        found = [hook._name(stem) for stem in ('0001', '0002', '0001')]
        names = ['0001', '0002', '0001_2']
        assert found == [f'student_teacher_{name}' for name in names]


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(interval=0), '^interval: expected an integer >= 1'),
        (dict(score_thr=2), r'^score_thr: expected a number in \[0, 1\]'),
        (dict(draws=True), "has no argument 'draws'; did you mean 'draw'"),
        (dict(terms={}), "has no argument 'terms'"),
        (dict(backend_args='local'), '^backend_args: expected a dict or None, but got'),
    ],
)
def test_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmselfdistill.DistillVisualizationHook(**setting)


def work(config: str) -> None:
    """Train on one rank, and write how often the model predicted and drew."""
    dist.init_process_group('gloo')
    runner = Runner.from_cfg(Config.fromfile(config))
    predicted: list[bool] = []
    runner.model.module.register_forward_pre_hook(
        lambda module, args, kwargs: predicted.append(kwargs['mode'] == 'predict'),
        with_kwargs=True,
    )
    runner.train()
    dist.barrier()
    images = len(list(Path(runner.work_dir).rglob('vis_image/*')))
    seen = dict(predicted=sum(predicted), trained=len(predicted) - sum(predicted))
    Path(f'{config}.{dist.get_rank()}').write_text(
        json.dumps(dict(seen, images=images))
    )
    dist.destroy_process_group()


def test_only_the_first_rank_draws(runs: Runs, tmp_path: Path) -> None:
    cfg = config_of(runs, 'deeplabv3plus', EMA, PICTURES)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    cfg.train_cfg.update(max_iters=2)
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    path = tmp_path / 'config.py'
    cfg.dump(path)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*command, '--nproc-per-node=2', __file__, str(path)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    seen = [json.loads(Path(f'{path}.{rank}').read_text()) for rank in (0, 1)]
    # each validates one of two images; the first asks the teacher too
    expected = [dict(predicted=count, trained=2, images=1) for count in (2, 1)]
    assert seen == expected, done.stdout[-5000:]


if __name__ == '__main__':
    work(sys.argv[1])
