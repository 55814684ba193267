"""Horizon, weight of the task, the teacher's norms, and its validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import mmselfdistill
from mmselfdistill.core.modes import use_batch_statistics
from mmselfdistill.core.teacher import make_teacher

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant')


@pytest.mark.parametrize(
    ('horizon', 'counts', 'momentum'),
    [
        (0.5, 1, 1 - 1 / 40),
        (0.5, 2, 1 - 1 / 20),
        # at least ten steps
        (0.01, 1, 0.9),
        (1.0, 1, 1 - 1 / 80),
        (None, 1, 0.9),
    ],
)
def test_a_horizon_is_a_share_of_the_optimizers_steps(
    horizon: float | None, counts: int, momentum: float, runs: Runs
) -> None:
    cfg = runs.config('gfl', dict(EMA, horizon=horizon), iters=80)
    cfg.optim_wrapper.accumulative_counts = counts
    runner = runs.train(cfg, stop_at=1)
    assert runs.hook(runner).momentum == pytest.approx(momentum)


def test_a_horizon_or_a_momentum() -> None:
    with pytest.raises(ValueError, match='expected either momentum or horizon'):
        mmselfdistill.EMATeacherHook(momentum=0.9, horizon=0.1)
    for wrong in (0, 1.5, True, 'x'):
        with pytest.raises(
            ValueError, match=r'^horizon: expected a number in \(0, 1\]'
        ):
            mmselfdistill.EMATeacherHook(horizon=wrong)  # type: ignore[arg-type]


def losses(runner: Runner, key: str) -> Any:
    return runner.message_hub.get_scalar(f'train/{key}').data[0]


def test_the_tasks_losses_are_weighted(runs: Runs) -> None:
    plain = runs.train(runs.config('retinanet', EMA, iters=1))
    for weight in (0.25, 0.0):
        cfg = runs.config('retinanet', dict(EMA, task_weight=weight), iters=1)
        runner = runs.train(cfg)
        for key in ('loss_cls', 'loss_bbox'):
            expected = weight * float(losses(plain, key)[0])
            assert float(losses(runner, key)[0]) == pytest.approx(expected)
        assert float(losses(runner, 'sd_task_weight')[0]) == weight


def test_the_tasks_weight_may_be_scheduled(runs: Runs) -> None:
    schedule = dict(type='linear', start=1.0, stop=0.5, begin=0.25, end=0.75)
    cfg = runs.config('retinanet', dict(EMA, task_weight=schedule), iters=8)
    runner = runs.train(cfg)
    # it is never off: before and after it is what it begins and ends with
    expected = [1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert losses(runner, 'sd_task_weight').tolist() == pytest.approx(expected)


def test_the_tasks_weight_is_over_the_run_and_not_each_generation(runs: Runs) -> None:
    hook = dict(type='mmselfdistill.GenerationHook', interval=2, by_epoch=False)
    schedule = dict(type='linear', start=1.0, stop=0.0)
    cfg = runs.config('retinanet', dict(hook, task_weight=schedule), iters=4)
    runner = runs.train(cfg)
    weights = losses(runner, 'sd_task_weight').tolist()
    assert weights == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_weight_of_1_is_bitwise_none(runs: Runs) -> None:
    found = [
        runs.state(runs.train(runs.config('gfl', dict(EMA, **more), iters=3)).model)
        for more in ({}, dict(task_weight=1))
    ]
    assert runs.differences(*found) == []


def test_norms_by_the_batch_where_the_students_train() -> None:
    student = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    x = 5 + 2 * torch.randn(4, 3, 8, 8)
    student(x)
    student[1].eval()
    teacher = make_teacher(student)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    assert not torch.equal(teacher(x), student(x))
    use_batch_statistics(teacher, student)
    mean = teacher[0](x)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    # one that is frozen in the student is so in its teacher
    assert teacher[1].training is False
    # until a hook lets it train, or freezes another
    student[1].train()
    student[0].eval()
    use_batch_statistics(teacher, student)
    frozen, mean = teacher[0](x), teacher[1](x).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    held = before['0.running_mean'], before['0.running_var']
    assert torch.equal(frozen, nn.functional.batch_norm(x, *held))
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_at_equal_weights_batch_norms_agree(runs: Runs) -> None:
    first = {}
    for kind in ('running', 'batch', None):
        cfg = runs.config('deeplabv3plus', dict(EMA, teacher_norm=kind), iters=1)
        for head in ('decode_head', 'auxiliary_head'):
            cfg.model[head].dropout_ratio = 0
        first[kind] = float(losses(runs.train(cfg), 'loss_sd_logits')[0])
    # the default of a segmentor
    assert first['batch'] == first[None] == 0 < first['running']


def set_norm(model: Any, kind: str) -> None:
    for value in model.values() if isinstance(model, dict) else model:
        if isinstance(value, (dict, list)):
            set_norm(value, kind)
    if isinstance(model, dict) and model.get('type') == 'BN':
        model['type'] = kind


def test_norms_made_of_sync_norms_keep_a_teachers_statistics(runs: Runs) -> None:
    first = runs.train(runs.config('deeplabv3plus', iters=1))
    path = str(Path(first.work_dir) / 'iter_1.pth')
    hook = dict(type='mmselfdistill.SelfDistillHook', teacher=path, schedule='constant')
    cfg = runs.config('deeplabv3plus', hook, iters=3)
    set_norm(cfg.model, 'SyncBN')
    runner = runs.train(cfg)
    # of one process, MMEngine makes them norms of its own
    kinds = {type(m).__name__ for m in runner.model.modules()}
    assert '_BatchNormXd' in kinds and 'BatchNorm2d' not in kinds
    teacher = runs.hook(runner).distiller.teacher
    assert runs.differences(runs.state(first.model), runs.state(teacher)) == []


def test_a_detectors_teacher_goes_by_running_statistics(runs: Runs) -> None:
    found = {}
    for kind in ('running', 'batch', None):
        cfg = runs.config('gfl', dict(EMA, teacher_norm=kind), iters=2)
        cfg.model.backbone.norm_eval = False
        found[kind] = runs.state(runs.train(cfg).model)
    assert runs.differences(found[None], found['running']) == []
    assert runs.differences(found[None], found['batch']) != []


def metrics(runner: Runner) -> set[str]:
    keys = runner.message_hub.log_scalars
    return {key[4:] for key in keys if key.startswith('val/') and 'time' not in key}


@pytest.mark.parametrize('validate', ['student', 'teacher', 'both'])
def test_what_is_validated(validate: str, runs: Runs) -> None:
    cfg = runs.config(
        'deeplabv3plus', dict(EMA, validate=validate), iters=4, val_interval=2
    )
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.3, update_buffers=True)]
    runner = runs.train(cfg)
    own = {'aAcc', 'mIoU', 'mAcc'}
    of_teacher = {f'teacher/{key}' for key in own}
    expected = dict(student=own, teacher=of_teacher, both=own | of_teacher)
    assert metrics(runner) == expected[validate]


@pytest.mark.parametrize('workers', [0, 1])
def test_validation_of_the_teacher_leaves_the_run_alone(
    workers: int, runs: Runs
) -> None:
    ends = []
    for validate in ('student', 'teacher', 'both'):
        hook = dict(EMA, validate=validate)
        cfg = runs.config('deeplabv3plus', hook, iters=4, val_interval=1)
        # those that are kept draw a seed once, others at each validation
        cfg.val_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
        ends.append(runs.state(runs.train(cfg).model))
    assert runs.differences(ends[0], ends[1]) == []
    assert runs.differences(ends[0], ends[2]) == []


def test_the_teachers_metrics_are_those_of_its_weights(runs: Runs) -> None:
    cfg = runs.config(
        'deeplabv3plus', dict(EMA, validate='both'), iters=4, val_interval=4
    )
    cfg.default_hooks.checkpoint.save_best = 'teacher/mIoU'

    @torch.no_grad()
    def move_apart(runner: Runner) -> None:
        # both would only know the background
        for parameter in runs.hook(runner).distiller.teacher.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))

    runner = runs.train(cfg, after=move_apart)
    hub = runner.message_hub
    found = {
        key: float(hub.get_scalar(f'val/{key}').data[0][-1]) for key in metrics(runner)
    }
    assert found['teacher/aAcc'] != found['aAcc']
    best = Path(hub.get_info('best_ckpt')).name
    assert best == 'best_teacher_mIoU_iter_4.pth'
    student: Any = runner.model
    student.load_state_dict(runs.hook(runner).distiller.teacher.state_dict())
    # two tables of metrics, and which is whose
    parts = runs.log(runner).split('self_distill: the teacher is validated first')
    assert [part.count('per class results') for part in parts] == [0, 2]
    again = runner.val()
    assert again['aAcc'] == pytest.approx(found['teacher/aAcc'])


def test_without_a_teacher_the_student_is_validated(runs: Runs) -> None:
    hook = dict(
        type='mmselfdistill.GenerationHook',
        interval=2,
        by_epoch=False,
        validate='teacher',
    )
    runner = runs.train(runs.config('deeplabv3plus', hook, iters=4, val_interval=2))
    (path,) = Path(runner.log_dir).glob('vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [{'mIoU', 'teacher/mIoU'} & {*line} for line in lines if 'loss' not in line]
    # the student's, of the validation before, is not logged again
    assert found == [{'mIoU'}, {'teacher/mIoU'}]


@pytest.mark.parametrize('setting', ['teacher_norm', 'validate'])
def test_unknown_choices_are_named(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: unknown 'batches'"):
        mmselfdistill.EMATeacherHook(**{setting: 'batches'})


BEST: dict[str, tuple[str, str, str, str]] = {
    'not validated': ('ema', 'student', 'teacher/mIoU', "set validate='both'"),
    'of the student': ('ema', 'teacher', 'mIoU', "use 'teacher/mIoU'"),
    'none yet': ('generation', 'both', 'teacher/mIoU', 'none in its first generation'),
    'by itself': ('generation', 'teacher', 'auto', 'none in its first generation'),
}


@pytest.mark.parametrize('case', BEST)
def test_a_best_metric_that_will_be_missing_is_refused(case: str, runs: Runs) -> None:
    kind, validate, best, message = BEST[case]
    generations: dict[str, Any] = dict(
        type='mmselfdistill.GenerationHook', interval=1, by_epoch=False
    )
    hook = dict(EMA if kind == 'ema' else generations, validate=validate)
    cfg = runs.config('deeplabv3plus', hook, iters=2, val_interval=1)
    cfg.default_hooks.checkpoint.save_best = best
    cfg.default_hooks.checkpoint.rule = 'greater'
    steps: list[int] = []
    with pytest.raises(ValueError, match=f'^save_best: .*{message}'):
        runs.train(cfg, lambda runner: steps.append(runner.iter))
    assert steps == []


@pytest.mark.parametrize(('key', 'value'), [('over', 'generation'), ('warmup', 0.2)])
def test_the_tasks_weight_is_over_the_run_and_does_not_grow(
    key: str, value: Any
) -> None:
    schedule = {'type': 'linear', key: value}
    with pytest.raises(ValueError, match=rf'^task_weight\.{key}: .*; remove it$'):
        mmselfdistill.EMATeacherHook(task_weight=schedule)
