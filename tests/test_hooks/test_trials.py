"""What would fail hours later fails, or is mended, before the first step."""

from __future__ import annotations

import gc
import random
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmselfdistill.hooks.restart import fresh_model, reinitialize

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant', momentum=0.5)
REINIT = dict(type='mmselfdistill.GenerationHook', generations=2, student='reinit')
TWO = dict(type='mmselfdistill.GenerationHook', generations=2)
RetinaNet: Any = MODELS.get('mmdet.RetinaNet')


def test_a_preprocessor_at_the_top_of_the_config_is_the_fresh_models_too(
    runs: Runs,
) -> None:
    cfg = runs.config('retinanet', REINIT, iters=2)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.experiment_name = 'top-level'
    stock = Runner(**cfg, cfg=Config(dict(cfg)))
    stock.train()
    assert runs.hook(stock).generation == 1


def test_a_fresh_model_that_cannot_be_built_is_refused_before_a_step(
    runs: Runs,
) -> None:
    steps: list[int] = []

    def spoil(runner: Runner) -> None:
        steps.append(runner.iter)

    cfg = runs.config('retinanet', REINIT, iters=2)
    runner = runs.build(cfg)
    runner.cfg.model.bbox_head.num_classes = 3
    with pytest.raises(ValueError, match=r'(?s)is not the student:.*bbox_head'):
        runner.train()
    runner = runs.build(cfg)
    runner.cfg.model.bbox_head.type = 'NoSuchHead'
    with pytest.raises(ValueError, match=r'from the config: .*NoSuchHead'):
        runner.train()
    assert runner.iter == 0 and steps == []


def test_fresh_weights_drawn_by_numpy_and_random_depend_on_the_seed_alone(
    runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Drawing(RetinaNet):
        def init_weights(self) -> None:
            super().init_weights()
            bias = self.bbox_head.retina_cls.bias
            nn.init.constant_(bias, np.random.rand() + random.random())

    cfg = runs.config('retinanet', REINIT, iters=2)
    cfg.model.type = 'Drawing'
    runner = runs.build(cfg)
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        model: Any = fresh_model(runner, 1)
        found.append(float(model.bbox_head.retina_cls.bias[0]))
        # the run's own streams go on
        ours = np.random.rand(), random.random()
        np.random.seed(seed)
        random.seed(seed)
        assert ours == (np.random.rand(), random.random())
    assert found[0] == found[1]
    other: Any = fresh_model(runner, 2)
    assert float(other.bbox_head.retina_cls.bias[0]) != found[0]


def test_a_models_own_teacher_restarts_with_a_fresh_student(runs: Runs) -> None:
    class MeanTeacher:
        """As MMDetection's hook: it finds the two parts by name."""

        def momentum_update(self, model: Any, momentum: float) -> None:
            pairs = zip(model.neck.parameters(), model.bbox_head.parameters())
            updated.append((momentum, len(list(pairs)) > 0))

    updated: list[tuple[float, bool]] = []
    runner = runs.train(runs.config('retinanet', REINIT, iters=1))
    runner._hooks.append(MeanTeacher())
    reinitialize(runner, 1)
    assert updated == [(1, True)]


@pytest.mark.parametrize('hook', [EMA, TWO], ids=['ema', 'generation'])
def test_a_buffer_of_the_first_forward_is_the_teachers_too(
    hook: dict[str, Any], runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Late(RetinaNet):
        def extract_feat(self, inputs: torch.Tensor) -> Any:
            if not hasattr(self.neck, 'seen'):
                self.neck.register_buffer('seen', torch.zeros(()))
            self.neck.seen = self.neck.seen + float(self.neck.training)
            return super().extract_feat(inputs)

    cfg = runs.config('retinanet', hook, iters=3)
    cfg.model.type = 'Late'
    runner = runs.train(cfg)
    teacher = runs.hook(runner).distiller.teacher
    assert teacher.neck.seen.shape == ()
    assert 'neck.seen' in runs.checkpoint(cfg)['mmselfdistill']['teacher']
    longer = Config({**cfg, 'resume': True})
    if hook is EMA:
        longer.train_cfg.max_iters = 5
        assert runs.train(longer).iter == 5


def test_unsaved_buffers_of_the_teacher_are_resumed(runs: Runs, models: Any) -> None:
    @models.register_module()
    class Counting(RetinaNet):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.register_buffer('count', torch.zeros(3), persistent=False)

    cfg = runs.config('retinanet', TWO, iters=2)
    cfg.model.type = 'Counting'
    cfg.default_hooks.checkpoint.interval = 3

    def count(runner: Runner) -> None:
        runner.model.count += 1

    runs.train(cfg, before=count, stop_at=3)
    held = runs.checkpoint(cfg)['mmselfdistill']
    assert held['buffers']['count'].tolist() == [2.0] * 3
    runner = runs.train(Config({**cfg, 'resume': True}))
    assert runs.hook(runner).distiller.teacher.count.tolist() == [2.0] * 3


def test_a_loss_that_goes_around_forward_ends_the_run(runs: Runs, models: Any) -> None:
    @models.register_module()
    class Around(RetinaNet):
        def _run_forward(self, data: Any, mode: str) -> Any:
            return self.loss(data['inputs'], data['data_samples'])

    cfg = runs.config('retinanet', EMA, iters=3)
    cfg.model.type = 'Around'
    with pytest.raises(RuntimeError, match="Around was not called with mode='loss'"):
        runs.train(cfg)


@pytest.mark.parametrize('how', ['step', 'parse'])
@pytest.mark.parametrize('begin', [0.0, 0.5])
def test_a_model_that_chooses_losses_by_name_is_refused_in_the_first_iteration(
    how: str, begin: float, runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Choosing(RetinaNet):
        def train_step(self, data: Any, optim_wrapper: Any) -> Any:
            if how == 'parse':
                return super().train_step(data, optim_wrapper)
            losses = self(**self.data_preprocessor(data, True), mode='loss')
            total = sum(losses['loss_cls']) + sum(losses['loss_bbox'])
            optim_wrapper.update_params(total)
            return dict(loss=total.detach())

        def parse_losses(self, losses: Any) -> Any:
            chosen = {key: losses[key] for key in ('loss_cls', 'loss_bbox')}
            return super().parse_losses(chosen if how == 'parse' else losses)

    hook = dict(EMA, schedule=dict(type='constant', begin=begin))
    cfg = runs.config('retinanet', hook, iters=4)
    cfg.model.type = 'Choosing'
    steps: list[int] = []
    names = 'loss_sd_boxes, loss_sd_features, loss_sd_logits'
    with pytest.raises(RuntimeError, match=f'Choosing does not minimise {names}: no'):
        runs.train(cfg, after=lambda runner: steps.append(runner.iter))
    assert steps == []


def test_a_forward_that_is_replaced_during_a_run_ends_it(runs: Runs) -> None:
    def replace(runner: Runner) -> None:
        runner.model.forward = type(runner.model).forward.__get__(runner.model)

    message = 'the forward of RetinaNet was replaced during the run'
    with pytest.raises(RuntimeError, match=message):
        runs.train(runs.config('retinanet', EMA, iters=3), after=replace)


@pytest.mark.parametrize(
    ('hook', 'warned'),
    [
        (dict(type='mmselfdistill.GenerationHook', interval=9, by_epoch=False), True),
        ({**EMA, 'loss_weight': 0}, False),
        (EMA, False),
    ],
)
def test_a_run_that_distilled_nothing_says_so(
    hook: dict[str, Any], warned: bool, runs: Runs
) -> None:
    cfg = runs.config('retinanet', hook, iters=2)
    text = runs.log(runs.train(cfg))
    assert ('no term was computed in this run' in text) == warned


def test_training_again_after_a_failed_run_attaches_again(runs: Runs) -> None:
    cfg = runs.config('retinanet', EMA, iters=3)
    runner = runs.build(cfg)
    stock = type(runner.model).loss
    failing: Any = lambda *args, **kwargs: 1 / 0  # noqa: E731
    vars(runner.model)['loss'] = failing
    with pytest.raises(ZeroDivisionError):
        runner.train()
    del vars(runner.model)['loss']
    assert runner.model.loss.__func__ is stock
    runner.train()
    hook = runs.hook(runner)
    assert runner.iter == 3 and hook.distiller.computed == 3
    assert 'forward' not in vars(runner.model)


def test_the_first_generation_holds_no_teacher(runs: Runs) -> None:
    tried: list[Any] = []
    alive: list[bool] = []

    def before(runner: Runner) -> None:
        if runner.iter == 0:
            tried.append(weakref.ref(runs.hook(runner).distiller.trial))
        else:
            gc.collect()
            alive.append(tried[0]() is not None)

    runs.train(runs.config('retinanet', TWO, iters=3), before)
    assert alive == 5 * [False]
