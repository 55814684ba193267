"""The running average: its formula, when it is updated, and what it works with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator

import pytest
import torch
from mmdet.models import GFL
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from mmselfdistill import EMATeacherHook
from mmselfdistill.hooks.run import optimizer_steps

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from torch import Tensor

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant')


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):  # type: ignore[misc]
    """What MMEngine's AmpOptimWrapper does, which asks for a GPU."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


class Watch:
    """Keeps the student before and after, and the teacher after each iteration."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.start: list[dict[str, Tensor]] = []
        self.students: list[dict[str, Tensor]] = []
        self.teachers: list[dict[str, Tensor]] = []
        self.kept: list[dict[str, Tensor]] = []

    def before(self, runner: Runner) -> None:
        self.start.append(self.runs.state(runner.model))
        self.kept.append(self.runs.state(self.runs.hook(runner).distiller.teacher))

    def after(self, runner: Runner) -> None:
        self.students.append(self.runs.state(runner.model))
        self.teachers.append(self.runs.state(self.runs.hook(runner).distiller.teacher))


def average(
    start: dict[str, Tensor], students: list[dict[str, Tensor]], momentum: float
) -> list[dict[str, Tensor]]:
    """Return the averages after each step, tensor by tensor, in float64."""
    found, now = [], {key: t.double() for key, t in start.items()}
    for step, student in enumerate(students):
        m = min(momentum, (1 + step) / (10 + step))
        for key, tensor in student.items():
            if tensor.is_floating_point():
                now[key] = m * now[key] + (1 - m) * tensor.double()
            else:
                now[key] = tensor.double()
        found.append(dict(now))
    return found


def assert_close(
    found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]
) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(
                tensor.double(), theirs[key], rtol=1e-5, atol=1e-6, msg=key
            )


@pytest.mark.parametrize(
    ('name', 'momentum'),
    [('retinanet', 0.9), ('mask_rcnn', 0.2), ('deeplabv3plus', 0.2)],
)
def test_formula(name: str, momentum: float, runs: Runs) -> None:
    watch = Watch(runs)
    # by the batch's statistics, a segmentor's terms are 0 at equal weights
    hook = {**EMA, 'momentum': momentum, 'teacher_norm': 'running'}
    cfg = runs.config(name, hook, iters=5)
    runner = runs.train(cfg, watch.before, watch.after)
    # the share of the third step is 3 / 12, which 0.2 caps
    expected = average(watch.start[0], watch.students, momentum)
    assert_close(watch.teachers, expected)
    assert runs.hook(runner).updates == 5
    # it begins as the student, and between the iterations nothing changes it
    assert runs.differences(watch.kept[0], watch.start[0]) == []
    assert runs.differences(watch.kept[1:], watch.teachers[:-1]) == []
    terms = [key for key in runner.message_hub.log_scalars if 'loss_sd_' in key]
    for key in terms:
        values = runner.message_hub.get_scalar(key).data[0]
        assert (values > 0).all() and len(values) == 5, key


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (dict(), ''),
        (dict(momentum=0.3), ''),
        (dict(momentum=1.0), 'the momentum, 1, is not reached in the 4 steps of'),
        (dict(horizon=0.02), 'the momentum, 0.9, is not reached in the 4 steps of'),
    ],
)
def test_a_momentum_that_the_run_does_not_reach_is_said(
    given: Any, said: str, runs: Runs
) -> None:
    cfg = runs.config('gfl', dict(type=EMA['type'], **given), iters=4)
    runner = runs.train(cfg)
    # (1 + 3) / (10 + 3)
    assert runs.log(runner).count('at most, 0.3077 at the last one') == bool(said)
    assert said in runs.log(runner)


def test_momentum_zero_follows_the_student(runs: Runs) -> None:
    watch = Watch(runs)
    cfg = runs.config('gfl', {**EMA, 'momentum': 0}, iters=3)
    runs.train(cfg, watch.before, watch.after)
    assert runs.differences(watch.teachers, watch.students) == []


def test_a_frozen_average_keeps_what_it_had(runs: Runs) -> None:
    watch = Watch(runs)
    cfg = runs.config('gfl', {**EMA, 'momentum': 0.2, 'freeze': 0.5}, iters=7)
    runner = runs.train(cfg, watch.before, watch.after)
    # the iterations that begin before the half: at 0/7, 1/7, 2/7 and 3/7
    assert runs.hook(runner).updates == 4
    assert_close(watch.teachers[:4], average(watch.start[0], watch.students[:4], 0.2))
    assert runs.differences(watch.teachers[4:], 3 * [watch.teachers[3]]) == []
    assert runs.differences(watch.students[4:6], watch.students[5:]) != []


def test_a_step_at_the_very_position_is_no_more_averaged(runs: Runs) -> None:
    watch = Watch(runs)
    cfg = runs.config('gfl', {**EMA, 'momentum': 0.2, 'freeze': 0.5}, iters=4)
    runner = runs.train(cfg, watch.before, watch.after)
    # those that begin at 0 and 1/4, not that at 2/4
    assert runs.hook(runner).updates == 2
    assert runs.differences(watch.teachers[2:], 2 * [watch.teachers[1]]) == []


def test_a_position_to_freeze_at_is_a_share_of_the_run() -> None:
    for wrong in (0, 1.5, 'x', None):
        with pytest.raises(ValueError, match=r'^freeze: expected a number in \(0, 1\]'):
            EMATeacherHook(freeze=wrong)  # type: ignore[arg-type]


def test_default_schedule_waits_until_the_teacher_is_grown(runs: Runs) -> None:
    weights: list[float] = []

    def before(runner: Runner) -> None:
        weights.append(runs.hook(runner).distiller.weights()['logits'])

    hook = dict(type='mmselfdistill.EMATeacherHook')
    runner = runs.train(runs.config('gfl', hook, iters=20), before)
    # nothing in the first half, all from 70 % on
    ramp = [0.0] * 10 + [0.0, 1 / 4, 2 / 4, 3 / 4] + [1.0] * 6
    torch.testing.assert_close(weights, ramp)
    losses = runner.message_hub.get_scalar('train/loss_sd_logits').data[0]
    assert (losses[:11] == 0).all() and (losses[11:] > 0).all()


def test_accumulated_gradients_are_one_step(runs: Runs) -> None:
    watch = Watch(runs)
    cfg = runs.config('gfl', {**EMA, 'momentum': 0.2}, iters=7)
    cfg.optim_wrapper.accumulative_counts = 3
    runner = runs.train(cfg, watch.before, watch.after)
    # the last iteration makes a step with what there is
    steps = [2, 5, 6]
    assert runs.hook(runner).updates == len(steps)
    stepped = [watch.students[i] for i in steps]
    expected = average(watch.start[0], stepped, 0.2)
    assert_close([watch.teachers[i] for i in steps], expected)
    for i in range(7):
        unchanged = runs.differences(watch.kept[i], watch.teachers[i]) == []
        assert unchanged == (i not in steps)


class TwoOptimizersGFL(GFL):  # type: ignore[misc]
    """Its backbone and the rest are trained by an optimizer each."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        data = self.data_preprocessor(data, training=True)
        loss, logged = self.parse_losses(self(**data, mode='loss'))
        for each in optim_wrapper.values():
            each.backward(loss, retain_graph=True)
        for each in optim_wrapper.values():
            if each.should_update():
                each.step()
                each.zero_grad()
        return logged


def test_a_step_of_any_optimizer_is_a_step(runs: Runs, models: Any) -> None:
    models.register_module(module=TwoOptimizersGFL)
    watch = Watch(runs)
    cfg = runs.config('gfl', {**EMA, 'horizon': 1.0}, iters=6)
    cfg.model.type, cfg.param_scheduler = 'TwoOptimizersGFL', None
    hook = Hook()
    hook.before_train_iter = lambda runner, **_: watch.before(runner)
    hook.after_train_iter = lambda runner, **_: watch.after(runner)
    runner = runs.build(cfg)
    runner.register_hook(hook, 'LOWEST')
    body = [*runner.model.backbone.parameters()]
    head = [*runner.model.neck.parameters(), *runner.model.bbox_head.parameters()]
    runner.optim_wrapper = OptimWrapperDict(
        body=OptimWrapper(torch.optim.SGD(body, 0.001), accumulative_counts=2),
        head=OptimWrapper(torch.optim.SGD(head, 0.001), accumulative_counts=3),
    )
    runner.train()
    # 2, 4 and 6 of the one, 3 and 6 of the other
    updated = [
        i for i in range(6) if runs.differences(watch.kept[i], watch.teachers[i])
    ]
    assert updated == [1, 2, 3, 5]
    assert runs.hook(runner).updates == 4
    # of several the quickest
    assert optimizer_steps(runner) == 3


def test_beside_the_stock_average_and_validation(runs: Runs) -> None:
    watch = Watch(runs)
    cfg = runs.config('deeplabv3plus', EMA, iters=4, val_interval=2)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.3, update_buffers=True)]
    runner = runs.train(cfg, watch.before, watch.after)
    # validation swaps the stock average into the student, and back
    assert runner.message_hub.get_scalar('val/mIoU').data[0].size == 2
    assert runs.differences(watch.start[1:], watch.students[:-1]) == []
    assert runs.differences(watch.kept[1:], watch.teachers[:-1]) == []
    assert_close(watch.teachers, average(watch.start[0], watch.students, 0.999))

    stock = {key: t.double() for key, t in watch.students[0].items()}
    for student in watch.students[1:]:
        for key, tensor in student.items():
            if tensor.is_floating_point():
                stock[key] = 0.7 * stock[key] + 0.3 * tensor.double()
    held = runs.checkpoint(cfg)
    names = [key for key, t in held['state_dict'].items() if t.is_floating_point()]
    assert_close(
        [{key: held['state_dict'][key] for key in names}],
        [{key: stock[key] for key in names}],
    )
    assert runs.differences(held['mmselfdistill']['teacher'], watch.teachers[-1]) == []


def first_convolution(model: nn.Module) -> nn.Module:
    return next(part for part in model.modules() if isinstance(part, nn.Conv2d))


@pytest.mark.parametrize('name', ['gfl', 'deeplabv3plus', 'segformer'])
def test_mixed_precision(name: str, runs: Runs) -> None:
    def watch_types(runner: Runner) -> None:
        if runner.iter == 0:
            teacher = runs.hook(runner).distiller.teacher
            for model in (runner.model, teacher):
                first_convolution(model).register_forward_hook(
                    lambda part, args, output: convolved.append(output.dtype)
                )
            runner.model.register_forward_hook(
                lambda model, args, losses: taught.append(
                    {k: v.detach() for k, v in losses.items() if 'loss_sd_' in k}
                )
            )
        watch.before(runner)

    results = []
    for amp in (False, True):
        convolved: list[torch.dtype] = []
        taught: list[dict[str, Tensor]] = []
        watch = Watch(runs)
        cfg = runs.config(name, {**EMA, 'momentum': 0.2}, iters=3)
        if name == 'segformer':
            # PyTorch 2.1 drops other paths in another precision
            cfg.model.backbone.drop_path_rate = 0.0
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper' if amp else 'OptimWrapper'
        runs.train(cfg, watch_types, watch.after)
        # student and teacher, three times, and the trial of the first iteration
        assert convolved == 7 * [torch.bfloat16 if amp else torch.float32]
        assert all(loss.dtype == torch.float32 for loss in taught[0].values())
        assert_close(watch.teachers, average(watch.start[0], watch.students, 0.2))
        results.append(taught[0])
    # of equal weights: the student's batch norm is what they measure
    torch.testing.assert_close(results[1], results[0], rtol=0.25, atol=1e-12)


@HOOKS.register_module()
class HalfHook(Hook):  # type: ignore[misc]
    """Keeps some weights in half precision."""

    def before_run(self, runner: Runner) -> None:
        runner.model.bbox_head.bfloat16()
        runner.model.backbone.half().requires_grad_(requires_grad=False)


def test_weights_that_train_in_half_precision_are_refused(runs: Runs) -> None:
    cfg = runs.config('retinanet', EMA, iters=1)
    cfg.custom_hooks = [dict(type='HalfHook')]
    message = r'^EMATeacherHook: bbox_head\.\S+ trains in torch\.bfloat16'
    with pytest.raises(ValueError, match=message):
        runs.train(cfg)
