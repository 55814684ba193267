"""A run that is killed and resumed ends, bit for bit, where it would have ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR, MultiStepLR
from torch import nn

from mmselfdistill.compat import load_checkpoint
from mmselfdistill.hooks.restart import Beginning

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

GENERATION = 'mmselfdistill.GenerationHook'
EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='linear')
BY_ITERS = dict(type=GENERATION, interval=3, by_epoch=False)
BY_EPOCHS = dict(type=GENERATION, interval=2)
TWO = dict(type=GENERATION, generations=2)
REINIT = dict(student='reinit')
FIXED = dict(type='mmselfdistill.SelfDistillHook', teacher='TEACHER')


def draw_by_iteration(runner: Runner) -> None:
    """Seed each iteration: MMEngine does not resume the random stream."""
    torch.manual_seed(runner.iter)


def kill_and_resume(runs: Runs, cfg: Config, stop_at: int) -> int:
    """Train with one interruption, and return the iteration of the resumption."""
    killed = runs.train(cfg, draw_by_iteration, stop_at=stop_at)
    assert killed.iter == stop_at
    first: list[int] = []

    def before(runner: Runner) -> None:
        first.append(runner.iter)
        draw_by_iteration(runner)

    runs.train(Config({**cfg, 'resume': True}), before)
    return first[0]


def end(runs: Runs, cfg: Config) -> dict[str, Any]:
    """Return the last checkpoint, without times, names and the log's history."""
    held = runs.checkpoint(cfg)
    meta = held.pop('meta')
    del held['message_hub']
    return {**held, 'epoch': meta['epoch'], 'iter': meta['iter']}


def compare(
    runs: Runs, make: Callable[[], Config], resumed_at: Sequence[int], interval: int = 0
) -> dict[str, Any]:
    """Compare one run with those that are killed an iteration after a checkpoint.

    Args:
        runs (Runs): The runs.
        make (Callable): Returns the config, with a work dir of its own.
        resumed_at (Sequence[int]): The iterations of the checkpoints.
        interval (int): Between checkpoints, in the loop's unit. Defaults to 0: only
            the one at which the run is resumed, and the last.

    Returns:
        dict: The uninterrupted run's last checkpoint.
    """
    straight = make()
    runs.train(straight, draw_by_iteration)
    expected = end(runs, straight)
    for iteration in resumed_at:
        broken = make()
        broken.default_hooks.checkpoint.interval = interval or iteration
        assert kill_and_resume(runs, broken, iteration + 1) == iteration
        assert runs.differences(expected, end(runs, broken)) == []
    return expected


@pytest.mark.usefixtures('stock_resumes_in_iterations')
@pytest.mark.parametrize(
    ('name', 'hook'),
    [
        ('retinanet', None),
        ('deeplabv3plus', None),
        ('retinanet', BY_ITERS),
        ('segformer', BY_ITERS),
        ('gfl', {**BY_ITERS, **REINIT}),
        ('deeplabv3plus', EMA),
        ('mask_rcnn', EMA),
    ],
)
def test_iterations(name: str, hook: dict[str, Any] | None, runs: Runs) -> None:
    # a generation is 3 iterations: 3 is a boundary, 4 inside the second
    resumed_at = (3, 4) if hook and hook['type'] == GENERATION else (4,)
    last = compare(runs, lambda: runs.config(name, hook, iters=7), resumed_at)
    assert last['iter'] == 7
    if hook is None:
        assert 'mmselfdistill' not in last
    else:
        ours = last['mmselfdistill']
        assert ours['generation'] == (0 if hook is EMA else 2)
        assert ours['updates'] == (7 if hook is EMA else 0)
        assert ours['teacher'].keys() == last['state_dict'].keys()


@pytest.mark.parametrize('hook', [EMA, BY_ITERS])
def test_by_the_runners_own_method(hook: dict[str, Any], runs: Runs) -> None:
    cfg = runs.config('gfl', hook, iters=4)
    runs.train(cfg)
    runner = runs.build(runs.config('gfl', hook, iters=6))
    begin: list[dict[str, Any]] = []

    def note(runner: Runner, **_: Any) -> None:
        ours = runs.hook(runner)
        counts = dict(updates=ours.updates, generation=ours.generation)
        begin.append(dict(counts, teacher=runs.state(ours.distiller.teacher)))

    first = Hook()
    first.before_train_iter = note
    runner.register_hook(first, 'LOWEST')
    runner.resume(f'{cfg.work_dir}/iter_4.pth')
    runner.train()
    saved = runs.checkpoint(cfg)['mmselfdistill']
    expected = {key: saved[key] for key in ('updates', 'generation')}
    expected['teacher'] = dict(saved['teacher'])
    assert saved['updates' if hook is EMA else 'generation'] == (
        4 if hook is EMA else 1
    )
    assert runs.differences(begin[0], expected) == []
    assert len(begin) == 2


def test_what_is_no_longer_made_is_no_longer_logged(runs: Runs) -> None:
    both = dict(EMA, validate='both', task_weight=0.5)
    work_dir, done = runs.config('deeplabv3plus').work_dir, 0
    for hook, iters in ((both, 4), (EMA, 6), (dict(EMA, validate='teacher'), 8)):
        cfg = runs.config('deeplabv3plus', hook, iters=iters, val_interval=2)
        cfg.update(resume=iters > 4, work_dir=work_dir)
        runner = runs.train(cfg)
        assert runner.iter == iters
        (path,) = Path(runner.log_dir).glob('vis_data/scalars.json')
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # runs that begin within one second share a log
        lines = [line for line in lines if line['step'] > done]
        done = iters
        trained = {key for line in lines if 'loss' in line for key in line}
        assert {'loss_sd_logits', 'sd_logits', 'sd_logits_weight'} < trained
        assert ('sd_task_weight' in trained) == (iters == 4)
        validated = {key for line in lines if 'loss' not in line for key in line}
        assert ('mIoU' in validated) == (iters < 8)
        assert ('teacher/mIoU' in validated) == (iters != 6)
    # what goes on has the values from before
    history, _ = runner.message_hub.get_scalar('train/loss_sd_logits').data
    assert len(history) == 8


def test_by_the_runners_own_method_of_a_plain_run(runs: Runs) -> None:
    plain = runs.config('gfl', iters=2)
    runs.train(plain)
    runner = runs.build(runs.config('gfl', EMA, iters=4))
    runner.resume(f'{plain.work_dir}/iter_2.pth')
    with pytest.raises(ValueError, match='holds no state of mmselfdistill'):
        runner.train()
    # its weights alone are another matter
    cfg = runs.config('gfl', EMA, iters=4)
    cfg.load_from = f'{plain.work_dir}/iter_2.pth'
    assert runs.hook(runs.train(cfg)).updates == 4


def test_weights_that_are_loaded_during_a_run_are_no_resumption(runs: Runs) -> None:
    plain = runs.config('gfl', iters=2)
    runs.train(plain)
    path = f'{plain.work_dir}/iter_2.pth'

    class Loading(Hook):
        def before_train(self, runner: Runner) -> None:
            runner.load_checkpoint(path)

    # as a launcher that always resumes: there is nothing to resume yet
    cfg = runs.config('gfl', EMA, iters=3)
    cfg.resume = True
    runner = runs.build(cfg)
    runner.register_hook(Loading())
    runner.train()
    assert runs.hook(runner).updates == 3
    # it goes on where it is, and has the teacher that it has
    runner.train_loop._max_iters = 4
    runner.train()
    assert runs.hook(runner).updates == 4
    # to test another one of the same run
    again = runs.build(Config(dict(cfg, resume=True, load_from=path)))
    with pytest.raises(ValueError, match='holds no state of mmselfdistill'):
        again.train()


def test_weights_that_were_saved_before_the_first_step_are_weights_alone(
    runs: Runs,
) -> None:
    plain = runs.build(runs.config('gfl', iters=2))
    without = dict(save_optimizer=False, save_param_scheduler=False)
    plain.save_checkpoint(plain.work_dir, 'start.pth', **without)
    cfg = runs.config('gfl', EMA, iters=3)
    cfg.load_from = f'{plain.work_dir}/start.pth'
    # a run that begins is at the iteration of this file, and does not resume it
    assert load_checkpoint(cfg.load_from)['meta']['iter'] == 0
    assert runs.hook(runs.train(cfg)).updates == 3


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_a_schedule_that_keeps_a_function(runs: Runs) -> None:
    def make() -> Config:
        cfg = runs.config('gfl', BY_ITERS, iters=7)
        one_cycle = dict(type='OneCycleLR', eta_max=0.02, total_steps=7, by_epoch=False)
        cfg.param_scheduler = [one_cycle]
        return cfg

    last = compare(runs, make, (4,))
    (state,) = last['mmselfdistill']['beginning']['schedulers'].values()
    assert 'total_steps' in state and not any(map(callable, state.values()))


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_a_frozen_average(runs: Runs) -> None:
    # resumed while it follows the student, and when it has been frozen
    hook = dict(EMA, freeze=0.6)
    last = compare(runs, lambda: runs.config('gfl', hook, iters=7), [2, 5])
    assert last['mmselfdistill']['updates'] == 5


@pytest.mark.parametrize(
    ('name', 'hook'),
    [
        ('retinanet', BY_EPOCHS),
        ('faster_rcnn', {**BY_EPOCHS, **REINIT}),
        ('cascade_mask_rcnn', EMA),
    ],
)
def test_epochs(name: str, hook: dict[str, Any], runs: Runs) -> None:
    # resumed at the last epoch, which is inside the second generation
    steps = runs.steps_an_epoch
    last = compare(runs, lambda: runs.config(name, hook, epochs=4), [3 * steps], 1)
    assert (last['epoch'], last['iter']) == (4, 4 * steps)
    assert last['mmselfdistill']['generation'] == (0 if hook is EMA else 1)
    assert last['mmselfdistill']['updates'] == (4 * steps if hook is EMA else 0)


@pytest.mark.usefixtures('stock_resumes_in_iterations')
@pytest.mark.parametrize('hook', [TWO, {**TWO, **REINIT}], ids=['continue', 'reinit'])
def test_lengthened_iterations(hook: dict[str, Any], runs: Runs) -> None:
    # two generations of 4: resumed before, at and after their boundary
    last = compare(runs, lambda: runs.config('segformer', hook, iters=4), [3, 4, 5])
    assert last['iter'] == 8 and last['mmselfdistill']['generation'] == 1


@pytest.mark.parametrize('hook', [TWO, {**TWO, **REINIT}], ids=['continue', 'reinit'])
def test_lengthened_epochs(hook: dict[str, Any], runs: Runs) -> None:
    steps = runs.steps_an_epoch
    last = compare(runs, lambda: runs.config('gfl', hook, epochs=2), [3 * steps], 3)
    assert last['epoch'] == 4 and last['mmselfdistill']['generation'] == 1


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_fixed_teacher_whose_file_is_gone(runs: Runs, tmp_path: Path) -> None:
    teacher = tmp_path / 'teacher.pth'
    stock = runs.config('retinanet', iters=1)
    runs.train(stock)
    weights = runs.checkpoint(stock)['state_dict']
    torch.save(weights, teacher)
    hook = {**FIXED, 'teacher': str(teacher)}
    straight, broken = (runs.config('retinanet', hook, iters=5) for _ in range(2))
    runs.train(straight, draw_by_iteration)
    broken.default_hooks.checkpoint.interval = 2
    runs.train(broken, draw_by_iteration, stop_at=3)
    teacher.unlink()
    runs.train(Config({**broken, 'resume': True}), draw_by_iteration)
    expected = end(runs, straight)
    assert runs.differences(expected, end(runs, broken)) == []
    assert runs.differences(weights, expected['mmselfdistill']['teacher']) == []


def test_another_fixed_teacher_is_not_taken_in_silence(
    runs: Runs, tmp_path: Path
) -> None:
    stock = runs.config('retinanet', iters=1)
    runs.train(stock)
    first, second = tmp_path / 'first.pth', tmp_path / 'second.pth'
    for path in (first, second):
        torch.save(runs.checkpoint(stock)['state_dict'], path)
    cfg = runs.config('retinanet', {**FIXED, 'teacher': str(first)}, iters=2)
    runs.train(cfg)
    cfg.resume = True
    # a run that is resumed again has it of the first one
    same = Path(os.path.relpath(first))
    for length, path in ((4, first), (6, second), (8, second), (10, same)):
        cfg.train_cfg.max_iters = length
        cfg.default_hooks.self_distill.teacher = str(path)
        runner = runs.train(cfg)
        text = runs.log(runner)
        assert f'The teacher is that of the checkpoint, {first}.' in text
        other = f'WARNING - The teacher is that of the checkpoint, {first}. The config'
        assert text.count(other) == (path == second)


def test_schedulers_that_are_added_restart_with_the_others(runs: Runs) -> None:
    cfg = runs.config('retinanet', dict(TWO, generations=3), iters=3)
    warm_up, cosine = cfg.param_scheduler
    cfg.param_scheduler = [warm_up]
    cfg.default_hooks.checkpoint.interval = 2
    runs.train(cfg, stop_at=2)
    rates: list[float] = []

    def before(runner: Runner) -> None:
        rates.append(runner.optim_wrapper.param_groups[0]['lr'])

    cfg.param_scheduler = [warm_up, cosine]
    runs.train(Config({**cfg, 'resume': True}), before)
    # of iterations 2 to 8, the second and third generation are 3 to 5 and 6 to 8
    assert rates[1:4] == pytest.approx(rates[4:7])
    assert rates[1] != pytest.approx(rates[3])


def test_weights_of_a_file_without_meta(runs: Runs, tmp_path: Path) -> None:
    cfg = runs.config('retinanet', iters=1)
    runs.train(cfg)
    path = tmp_path / 'bare.pth'
    torch.save(dict(meta=None, state_dict=runs.checkpoint(cfg)['state_dict']), path)
    cfg = runs.config('retinanet', EMA, iters=2)
    cfg.load_from = str(path)
    assert runs.train(cfg).iter == 2


@pytest.mark.usefixtures('stock_resumes_in_iterations')
@pytest.mark.parametrize('hook', [EMA, BY_ITERS], ids=['ema', 'generation'])
def test_beside_the_stock_ema_hook(hook: dict[str, Any], runs: Runs) -> None:
    def make() -> Config:
        cfg = runs.config('deeplabv3plus', hook, iters=7)
        # it saves the student under a key of its own, and its average as the student
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True)]
        return cfg

    assert compare(runs, make, [4])['ema_state_dict']['steps'] == 7


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_accumulated_gradients(runs: Runs) -> None:
    def make() -> Config:
        cfg = runs.config('gfl', EMA, iters=7)
        cfg.optim_wrapper.accumulative_counts = 2
        return cfg

    # steps after 2, 4 and 6 iterations, and after the last
    assert compare(runs, make, [4])['mmselfdistill']['updates'] == 4


def test_within_an_epoch_that_is_made_again(runs: Runs) -> None:
    steps = runs.steps_an_epoch
    # a boundary within the second epoch
    hook = dict(BY_ITERS, interval=steps + 1)
    seen: list[tuple[int, int, float]] = []

    def before(runner: Runner) -> None:
        ours = runs.hook(runner)
        seen.append((runner.iter, ours.generation, ours.distiller.progress))

    cfg = runs.config('retinanet', hook, epochs=3)
    # MMEngine begins the epoch again, and counts on
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=steps + 2)
    runs.train(cfg, stop_at=steps + 3)
    runs.train(Config({**cfg, 'resume': True}), before)
    places = range(steps, 3 * steps)
    assert [number for number, *_ in seen] == [each + 2 for each in places]
    # as long as the place is in the generation before, it is the begin of this one
    generations = [max(1, each // (steps + 1)) for each in places]
    assert [number for _, number, _ in seen] == generations
    parts = [(each - g * (steps + 1)) for each, g in zip(places, generations)]
    assert [progress * (steps + 1) for *_, progress in seen] == pytest.approx(
        [max(0, part) for part in parts]
    )


@pytest.mark.parametrize(
    'hook',
    [TWO, {**BY_EPOCHS, 'student': 'reinit'}, EMA],
    ids=['two', 'interval', 'ema'],
)
def test_another_batch_size(hook: dict[str, Any], runs: Runs) -> None:
    seen: list[tuple[int, int, float]] = []

    def before(runner: Runner) -> None:
        ours = runs.hook(runner)
        seen.append((runner.epoch, ours.generation, ours.distiller.progress))

    cfg = runs.config('gfl', hook, epochs=2 if hook is TWO else 4)
    cfg.default_hooks.checkpoint.interval = 1
    runs.train(cfg, stop_at=runs.steps_an_epoch)
    cfg.train_dataloader.batch_size = 1
    runs.train(Config({**cfg, 'resume': True}), before)
    steps = 2 * runs.steps_an_epoch
    done = [epoch + batch / steps for epoch in (1, 2, 3) for batch in range(steps)]
    parts = [each / 4 if hook is EMA else each % 2 / 2 for each in done]
    assert [epoch for epoch, *_ in seen] == [int(each) for each in done]
    assert [number for _, number, _ in seen] == [
        0 if hook is EMA else each // 2 for each in done
    ]
    assert [progress for *_, progress in seen] == pytest.approx(parts)


def test_each_optimizer_has_schedulers_of_its_own(runs: Runs) -> None:
    runner = runs.build(runs.config('retinanet', iters=2))
    layers = dict(a=nn.Linear(1, 1), b=nn.Linear(1, 1))
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1))
        for name, layer in layers.items()
    }
    runner.optim_wrapper = OptimWrapperDict(**wrappers)

    def beginning(**schedulers: list[Any]) -> Any:
        runner.param_schedulers = schedulers
        return Beginning(runner, {})

    first = MultiStepLR(wrappers['a'], milestones=[5])
    second = CosineAnnealingLR(wrappers['b'], T_max=10)
    saved = beginning(a=[first], b=[second])
    # a resumed run has one more
    added = LinearLR(wrappers['a'], start_factor=0.5, end=3)
    resumed = beginning(a=[first, added], b=[second])
    resumed.resume(saved.state)
    expected = [each.state_dict() for each in (first, added, second)]
    for scheduler in (first, added, second):
        scheduler.step()
    resumed.restore(runner)
    assert [each.state_dict() for each in (first, added, second)] == expected
