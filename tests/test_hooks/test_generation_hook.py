"""Generations: where they begin, what is copied, and what restarts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch.nn.modules.module import register_module_forward_hook

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner
    from torch import Tensor, nn

    from tests.test_hooks.conftest import Runs

HOOK = 'mmselfdistill.GenerationHook'
BY_ITERS = dict(type=HOOK, interval=3, by_epoch=False)
BY_EPOCHS = dict(type=HOOK, interval=2)


def logged(runner: Runner, key: str) -> list[float]:
    """Return what was logged in each iteration."""
    return [float(v) for v in runner.message_hub.get_scalar(f'train/{key}').data[0]]


def boundaries(cfg: Config) -> list[tuple[int, int]]:
    """Return the generation and the iteration of each boundary that was logged."""
    (path,) = Path(cfg.work_dir).glob('*/*.log')
    lines = [line.split() for line in path.read_text().splitlines()]
    found = []
    for words in lines:
        if 'Generation' in words and 'begins' in words:
            number = int(words[words.index('Generation') + 1])
            found.append((number, int(words[-1].rstrip('.'))))
    return found


def rates(runs: Runs, cfg: Config) -> list[tuple[float, float]]:
    """Train, and return learning rate and momentum of each iteration."""
    found: list[tuple[float, float]] = []

    def before(runner: Runner) -> None:
        optim_wrapper = runner.optim_wrapper
        momentum = optim_wrapper.get_momentum()['momentum'][0]
        found.append((optim_wrapper.get_lr()['lr'][0], momentum))

    runs.train(cfg, before)
    return found


@pytest.mark.parametrize('name', ['retinanet', 'cascade_mask_rcnn', 'segformer'])
def test_first_generation_costs_nothing(name: str, runs: Runs) -> None:
    backbones: list[nn.Module] = []

    def count(module: nn.Module, args: Any, output: Any) -> None:
        if type(module) is kind:
            backbones.append(module)

    cfg = runs.config(name, BY_ITERS, iters=5)
    kind = type(runs.build(cfg).model.backbone)
    handle = register_module_forward_hook(count)
    try:
        runner = runs.train(cfg)
    finally:
        handle.remove()
    student, teacher = runner.model.backbone, runs.hook(runner).distiller.teacher
    ours, theirs = [student], [student, teacher.backbone]
    # once, in the first iteration, it is tried what a teacher will have to repeat
    trial = backbones.pop(1)
    assert trial is not student and trial is not teacher.backbone
    assert [id(b) for b in backbones] == [id(b) for b in 3 * ours + 2 * theirs]
    terms = [key[6:] for key in runner.message_hub.log_scalars if 'loss_sd' in key]
    assert len(terms) == (2 if name == 'segformer' else 3 if name == 'retinanet' else 4)
    for term in terms:
        values = logged(runner, term)
        # the student's batch norm already differs at the boundary
        assert values[:3] == [0, 0, 0] and values[3] > 0 and values[4] > 0


@pytest.mark.parametrize(
    ('hook', 'length', 'expected'),
    [
        (BY_ITERS, dict(iters=8), [(2, 3), (3, 6)]),
        ({**BY_ITERS, 'student': 'reinit'}, dict(iters=8), [(2, 3), (3, 6)]),
        # an interval in iterations in a loop of epochs
        ({**BY_ITERS, 'interval': 4}, dict(epochs=3), [(2, 4), (3, 8)]),
        (BY_EPOCHS, dict(epochs=5), [(2, 6), (3, 12)]),
        ({**BY_EPOCHS, 'student': 'reinit'}, dict(epochs=3), [(2, 6)]),
        (dict(type=HOOK, generations=3), dict(iters=3), [(2, 3), (3, 6)]),
        (dict(type=HOOK, generations=2), dict(epochs=2), [(2, 6)]),
        (dict(type=HOOK, generations=1), dict(iters=3), []),
    ],
)
def test_teacher_is_the_student_of_the_boundary(
    hook: dict[str, Any],
    length: dict[str, int],
    expected: list[tuple[int, int]],
    runs: Runs,
) -> None:
    ended: dict[int, dict[str, Tensor]] = {}
    compared = []

    def before(runner: Runner) -> None:
        distiller = runs.hook(runner).distiller
        if distiller.teacher is not None:
            # of every iteration: it stays as it was at the boundary
            boundary = max(at for _, at in expected if at <= runner.iter)
            teacher = runs.state(distiller.teacher)
            assert runs.differences(ended[boundary], teacher) == []
            compared.append(runner.iter)

    def after(runner: Runner) -> None:
        ended[runner.iter + 1] = runs.state(runner.model)

    cfg = runs.config('gfl', hook, **length)
    runner = runs.train(cfg, before, after)
    own = length.get('iters', 0) or length['epochs'] * runs.steps_an_epoch
    total = own * hook.get('generations', 1)
    assert runner.iter == runner.max_iters == total
    first = expected[0][1] if expected else total
    assert compared == list(range(first, total))
    assert boundaries(cfg) == expected


def test_a_wrapper_of_the_users_outlives_a_boundary(runs: Runs) -> None:
    class Adding(Hook):
        def before_train(self, runner: Runner) -> None:
            model: Any = runner.model
            inner = model.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                return {**inner(*args, **kwargs), 'loss_extra': torch.ones(())}

            model.forward = forward

    runner = runs.build(runs.config('gfl', BY_ITERS, iters=7))
    runner.register_hook(Adding())
    runner.train()
    assert logged(runner, 'loss_extra') == [1.0] * 7
    assert len(logged(runner, 'loss_sd_logits')) == 7
    assert logged(runner, 'loss_sd_logits')[-1] > 0
    # the teacher is a copy of the model without it
    teacher = runs.hook(runner).distiller.teacher
    assert teacher is not None and 'forward' not in vars(teacher)


def test_schedule_runs_over_each_generation(runs: Runs) -> None:
    hook = dict(schedule=dict(type='linear', start=1.0, stop=0.0), loss_weight=2.0)
    weights: list[float] = []

    def before(runner: Runner) -> None:
        weights.append(runs.hook(runner).distiller.weights()['features'])

    cfg = runs.config('gfl', {**BY_ITERS, **hook, 'interval': 4}, iters=10)
    runs.train(cfg, before)
    # 2.0 of the hook times 0.5 of the term
    expected = [0.0] * 4 + [1.0, 0.75, 0.5, 0.25] + [1.0, 0.75]
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize('student', ['continue', 'reinit'])
@pytest.mark.parametrize('unit', ['iters', 'epochs'])
def test_schedules_begin_anew_in_each_generation(
    unit: str, student: str, runs: Runs
) -> None:
    own = 4 if unit == 'iters' else 2 * runs.steps_an_epoch
    hook = dict(type=HOOK, generations=3, student=student)
    cfg = runs.config('gfl', hook, **{unit: 4 if unit == 'iters' else 2})
    poly = dict(begin=0, end=own, power=1, by_epoch=False)
    cfg.param_scheduler = [
        dict(type='PolyLR', eta_min=0.001, **poly),
        dict(type='PolyMomentum', eta_min=0.1, **poly),
    ]
    left = [1 - step / (own - 1) for step in range(own)]
    base = cfg.optim_wrapper.optimizer.lr
    expected = [(0.001 + (base - 0.001) * f, 0.1 + (0.9 - 0.1) * f) for f in left]
    torch.testing.assert_close(rates(runs, cfg), 3 * expected)


def test_the_configs_own_schedule_in_each_generation(runs: Runs) -> None:
    # warm-up and cosine, chained: the stock run says what they are
    stock = rates(runs, runs.config('gfl', iters=5))
    assert len(set(stock)) == 5
    lengthened = runs.config('gfl', dict(type=HOOK, generations=2), iters=5)
    assert rates(runs, lengthened) == 2 * stock


@pytest.mark.parametrize('length', [dict(iters=7), dict(epochs=3)])
def test_interval_leaves_the_schedules_alone(
    length: dict[str, int], runs: Runs
) -> None:
    stock = rates(runs, runs.config('gfl', None, **length))
    assert rates(runs, runs.config('gfl', BY_ITERS, **length)) == stock
    # fresh weights begin with the first learning rate
    reinit = runs.config('gfl', {**BY_ITERS, 'student': 'reinit'}, **length)
    again = (3 * stock[:3])[: len(stock)]
    assert rates(runs, reinit) == again


@pytest.mark.parametrize('seed', [0, 7])
@pytest.mark.parametrize('name', ['retinanet', 'deeplabv3plus'])
def test_reinit_depends_on_seed_and_generation(
    name: str, seed: int, runs: Runs
) -> None:
    length = dict(epochs=2) if name == 'retinanet' else dict(iters=6)
    cfg = runs.config(name, {**BY_ITERS, 'interval': 2, 'student': 'reinit'}, **length)
    cfg.randomness.seed = seed
    ended, begun, streams = [], {}, []

    def before(runner: Runner) -> None:
        streams.append(torch.get_rng_state())
        generation, step = divmod(runner.iter, 2)
        assert (len(runner.optim_wrapper.optimizer.state) == 0) == (step == 0)
        if step == 0:
            begun[generation] = runs.state(runner.model)

    def after(runner: Runner) -> None:
        ended.append(torch.get_rng_state())

    runs.train(cfg, before, after)
    assert list(begun) == [0, 1, 2]
    for generation in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed + generation)
            fresh = MODELS.build(copy.deepcopy(cfg.model))
            fresh.init_weights()
        assert runs.differences(begun[generation], runs.state(fresh)) == []
        convolution = 'backbone.layer4.0.conv1.weight'
        assert not torch.equal(begun[0][convolution], begun[generation][convolution])
    # drawing them has not moved the stream that the run goes on with
    if name == 'deeplabv3plus':
        assert runs.differences(ended[:-1], streams[1:]) == []


def test_continue_keeps_weights_and_optimizer(runs: Runs) -> None:
    def keep(into: list[Any], runner: Runner) -> None:
        state = runner.optim_wrapper.optimizer.state_dict()['state']
        into.append(copy.deepcopy((runs.state(runner.model), state)))

    ended: list[Any] = []
    begun: list[Any] = []
    cfg = runs.config('gfl', dict(type=HOOK, generations=2), iters=3)
    runs.train(cfg, lambda runner: keep(begun, runner), lambda r: keep(ended, r))
    assert runs.differences(ended[2], begun[3]) == []
    assert {int(each['step']) for each in begun[3][1].values()} == {3}


def test_reinit_starts_the_stock_average_anew(runs: Runs) -> None:
    cfg = runs.config('gfl', {**BY_ITERS, 'student': 'reinit'}, iters=5)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    copied = []

    def after(runner: Runner) -> None:
        (average,) = (h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))
        parameters = zip(average.module.parameters(), runner.model.parameters())
        copied.append(all(torch.equal(ours, theirs) for ours, theirs in parameters))

    runs.train(cfg, after=after)
    assert copied == [True, False, False, True, False]


@pytest.mark.parametrize(
    ('hook', 'warned'),
    [
        ({**BY_ITERS, 'interval': 4}, True),
        (dict(type=HOOK, generations=1), True),
        ({**BY_ITERS, 'interval': 3}, False),
    ],
)
def test_warns_that_nothing_is_distilled(
    hook: dict[str, Any], warned: bool, runs: Runs
) -> None:
    cfg = runs.config('gfl', hook, iters=4)
    runs.train(cfg)
    (path,) = Path(cfg.work_dir).glob('*/*.log')
    lines = path.read_text().splitlines()
    found = [line for line in lines if 'nothing will be distilled' in line]
    assert len(found) == warned
