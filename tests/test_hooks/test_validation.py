"""What is validated, when, and which metrics a run may look up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import loops
from mmengine.structures import BaseDataElement
from mmseg.models import EncoderDecoder
from torch import nn

from mmselfdistill.hooks.validation import check_metrics

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', momentum=0.5, schedule='constant')


@pytest.mark.parametrize('validate', ['student', 'teacher', 'both'])
def test_after_the_run_the_same_is_validated(validate: str, runs: Runs) -> None:
    hook = dict(EMA, validate=validate)
    runner = runs.train(runs.config('deeplabv3plus', hook, iters=2, val_interval=2))
    with torch.no_grad():
        # both would only know the background
        for parameter in runs.hook(runner).distiller.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = runner.val()
    assert 'forward' not in vars(runner.model)
    stock = runs.build(runs.config('deeplabv3plus', iters=2, val_interval=2))
    model: Any = stock.model
    expected: dict[str, float] = {}
    if validate != 'teacher':
        model.load_state_dict(runner.model.state_dict())
        expected.update(stock.val())
    if validate != 'student':
        model.load_state_dict(runs.hook(runner).distiller.teacher.state_dict())
        own = stock.val()
        expected.update({f'teacher/{key}': value for key, value in own.items()})
    assert found == expected
    if validate == 'both':
        assert found['aAcc'] != found['teacher/aAcc']


def test_the_teacher_is_validated_in_the_precision_of_the_student(runs: Runs) -> None:
    found: dict[str, list[torch.dtype]] = dict(student=[], teacher=[])

    def before(runner: Runner) -> None:
        teacher = runs.hook(runner).distiller.teacher
        if runner.iter == 1:
            for side, model in (('student', runner.model), ('teacher', teacher)):
                convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
                next(convolutions).register_forward_hook(
                    lambda _, args, output, side=side: found[side].append(output.dtype)
                )

    hook = dict(EMA, validate='both')
    cfg = runs.config('deeplabv3plus', hook, iters=2, val_interval=2)
    cfg.val_cfg.fp16 = True
    cfg.val_dataloader.batch_size = 2
    runs.train(cfg, before)
    # one iteration, and one batch of a validation
    expected = [torch.float32, torch.bfloat16]
    assert found == dict(student=expected, teacher=expected)


def test_a_validation_that_was_interrupted_leaves_the_student(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = dict(EMA, validate='teacher')
    cfg = runs.config('deeplabv3plus', hook, iters=4, val_interval=2)
    cfg.test_cfg = dict(type='TestLoop')
    for key in ('dataloader', 'evaluator'):
        cfg[f'test_{key}'] = cfg[f'val_{key}']
    modes: list[bool] = []

    def note(runner: Runner, **_: Any) -> None:
        modes.append(runs.hook(runner).distiller.teacher.training)

    last = Hook()
    last.after_train_iter = note
    runner = runs.build(cfg)
    runner.register_hook(last, 'LOWEST')
    evaluator: Any = runner.val_evaluator

    def interrupted(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(evaluator), 'evaluate', interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    distiller = runs.hook(runner).distiller
    with torch.no_grad():
        for parameter in distiller.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = runner.test()
    stock = runs.build(runs.config('deeplabv3plus', iters=2, val_interval=2))
    model: Any = stock.model
    model.load_state_dict(runner.model.state_dict())
    assert found == stock.val()
    runner.train()
    assert modes == [True] * 4


def test_files_that_the_evaluator_writes_are_the_students(
    runs: Runs, tmp_path: Path
) -> None:
    hook = dict(EMA, validate='both')
    cfg = runs.config('deeplabv3plus', hook, iters=2, val_interval=2)
    cfg.val_evaluator.output_dir = str(tmp_path / 'both')
    runner = runs.train(cfg)
    with torch.no_grad():
        for parameter in runs.hook(runner).distiller.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    runner.val()
    found = {'both': written(tmp_path / 'both')}
    del cfg.default_hooks.self_distill
    weights = dict(student=runner.model, teacher=runs.hook(runner).distiller.teacher)
    for name, trained in weights.items():
        cfg.val_evaluator.output_dir = str(tmp_path / name)
        stock = runs.build(cfg)
        model: Any = stock.model
        model.load_state_dict(trained.state_dict())
        stock.val()
        found[name] = written(tmp_path / name)
    assert len(found['both']) == 2
    assert found['both'] == found['student'] != found['teacher']


def written(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.skipif(
    not hasattr(loops, '_update_losses'), reason='this MMEngine validates no loss'
)
def test_a_loss_that_is_validated_is_no_image_and_the_models_own(
    runs: Runs, models: Any
) -> None:
    @models.register_module()
    class LossAtValidation(EncoderDecoder):
        def predict(self, inputs: Any, data_samples: Any = None) -> Any:
            losses = self(inputs, data_samples, mode='loss')
            found = super().predict(inputs, data_samples)
            return [*found, BaseDataElement(loss=losses)]

    # the teacher is the student
    view = dict(brightness=0.5)
    hook = dict(EMA, momentum=0.0, validate='both', view=view)
    cfg = runs.config('deeplabv3plus', hook, iters=2, val_interval=2)
    cfg.model.type = 'LossAtValidation'
    runner = runs.train(cfg)
    scalars = runner.message_hub.log_scalars
    found = {
        key[4:]: float(value.current())
        for key, value in scalars.items()
        if key.startswith('val/') and 'time' not in key
    }
    own = {key: value for key, value in found.items() if 'loss' not in key}
    assert {f'teacher/{key}' for key in ('aAcc', 'mAcc', 'mIoU')} < own.keys()
    for key in ('aAcc', 'mAcc', 'mIoU'):
        assert own[f'teacher/{key}'] == own[key]
    stock = runs.build(cfg)
    model: Any = stock.model
    model.load_state_dict(runner.model.state_dict())
    again = stock.val()
    losses = {key: value for key, value in again.items() if 'loss' in key}
    assert losses and not any('sd_' in key for key in found)
    assert {key: found[key] for key in losses} == pytest.approx(losses)


@pytest.mark.parametrize('where', ['EarlyStoppingHook', 'ReduceOnPlateauLR'])
def test_a_metric_that_the_run_will_not_find_is_refused(where: str, runs: Runs) -> None:
    cfg = runs.config('deeplabv3plus', dict(EMA, validate='teacher'), epochs=2)
    reader = dict(type=where, monitor='mIoU', rule='greater')
    if where == 'EarlyStoppingHook':
        cfg.custom_hooks = [reader]
    else:
        cfg.param_scheduler = [reader]
    steps: list[int] = []

    def note(runner: Runner) -> None:
        steps.append(runner.iter)

    message = rf"^{where}\.monitor: 'mIoU' is of the student.*use 'teacher/mIoU'"
    with pytest.raises(ValueError, match=message):
        runs.train(cfg, note)
    assert steps == []
    cfg.default_hooks.self_distill.validate = 'both'
    runs.train(cfg, note)
    assert len(steps) == 2 * runs.steps_an_epoch


def test_the_teacher_of_the_model_itself_keeps_its_metrics(runs: Runs) -> None:
    cfg = runs.config('retinanet', dict(EMA, validate='both'), iters=1, val_interval=1)
    cfg.val_cfg = dict(type='TeacherStudentValLoop')
    cfg.val_evaluator.ann_file = f'{runs.data}/annotations/instances_val2017.json'
    with pytest.raises(ValueError, match=r"validate: expected 'student', .*'both'"):
        runs.train(cfg)
    cfg.default_hooks.self_distill.validate = 'student'
    cfg.default_hooks.checkpoint.save_best = 'teacher/coco/bbox_mAP'
    runner = runs.build(cfg)
    assert type(runner.val_loop).__name__ == 'TeacherStudentValLoop'
    check_metrics(runs.hook(runner), runner)
    del cfg.val_cfg['type']
    runner = runs.build(cfg)
    assert type(runner.val_loop).__name__ == 'ValLoop'
    with pytest.raises(ValueError, match='which is not validated'):
        check_metrics(runs.hook(runner), runner)
