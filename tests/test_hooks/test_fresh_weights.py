"""Fresh weights: what they are compared with, and what restarts with them."""

from __future__ import annotations

import random
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mmdet.engine.hooks import MeanTeacherHook
from mmengine.hooks import EarlyStoppingHook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS

from mmselfdistill.hooks.restart import fresh_model, reinitialize

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

REINIT = dict(
    type='mmselfdistill.GenerationHook', interval=2, by_epoch=False, student='reinit'
)
RetinaNet: Any = MODELS.get('mmdet.RetinaNet')


def test_the_trial_moves_nothing(runs: Runs) -> None:
    def end(hook: dict[str, Any] | None) -> list[Any]:
        runner = runs.train(runs.config('deeplabv3plus', hook, iters=3))
        streams = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        return [runs.state(runner.model), *streams]

    tried = end({**REINIT, 'interval': 9})
    assert runs.differences(end(None), tried) == []


def test_gradients_of_the_weights_before_are_dropped(runs: Runs) -> None:
    gathered: list[bool] = []

    def before(runner: Runner) -> None:
        gradients = [p.grad for p in runner.model.parameters() if p.grad is not None]
        gathered.append(any(bool(each.any()) for each in gradients))

    cfg = runs.config('gfl', REINIT, iters=4)
    cfg.optim_wrapper.accumulative_counts = 3
    # the second generation begins between two steps
    runs.train(cfg, before)
    assert gathered == [False, True, False, False]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        # the student that is given to the Runner was built in another way
        (
            lambda m: m.register_buffer('mark', torch.zeros(3)),
            'mark: (2,) in the fresh',
        ),
        (lambda m: delattr(m, 'mark'), 'mark: not in the student'),
        (
            lambda m: m.register_parameter('more', torch.nn.Parameter(torch.zeros(1))),
            'more: not in the fresh model',
        ),
    ],
    ids=['shape', 'lacking', 'more'],
)
def test_every_tensor_is_compared(
    change: Any, words: str, runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Marked(RetinaNet):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.register_buffer('mark', torch.zeros(2))

    cfg = runs.config('retinanet', REINIT, iters=4)
    cfg.model.type = 'Marked'
    runner = runs.build(cfg)
    change(runner.model)
    with pytest.raises(ValueError, match='is not the student') as caught:
        runner.train()
    assert words in str(caught.value) and runner.iter == 0
    assert len(str(caught.value).splitlines()) == 2


def test_a_buffer_of_a_forward_stays(runs: Runs, models: Any) -> None:
    @models.register_module()
    class Sized(RetinaNet):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.register_buffer('grid', torch.zeros(0), persistent=False)

        def extract_feat(self, inputs: torch.Tensor) -> Any:
            if not self.grid.numel():
                self.grid = torch.arange(inputs.shape[-1])
                self.register_buffer('late', torch.ones(2))
            return super().extract_feat(inputs)

    cfg = runs.config('retinanet', REINIT, iters=4)
    cfg.model.type = 'Sized'
    runner = runs.train(cfg)
    assert runner.iter == 4 and runs.hook(runner).generation == 1
    assert runner.model.grid.tolist() == list(range(64))
    assert runner.model.late.tolist() == [1, 1]


@pytest.mark.parametrize(('rule', 'worst'), [('greater', -inf), ('less', inf)])
def test_each_generation_has_the_whole_patience(
    rule: str, worst: float, runs: Runs
) -> None:
    found: list[tuple[int, float]] = []

    def before(runner: Runner) -> None:
        (hook,) = (h for h in runner.hooks if isinstance(h, EarlyStoppingHook))
        found.append((hook.wait_count, hook.best_score))
        hook.wait_count, hook.best_score = runner.iter + 1, 0.5

    cfg = runs.config('deeplabv3plus', REINIT, iters=4)
    cfg.custom_hooks = [
        dict(type='EarlyStoppingHook', monitor='score', rule=rule, patience=3)
    ]
    runs.train(cfg, before)
    assert found == [(0, worst), (1, 0.5), (0, worst), (3, 0.5)]


def test_a_semi_supervised_models_own_teacher_begins_as_its_student(
    runs: Runs,
) -> None:
    cfg = runs.config('faster_rcnn', REINIT, iters=4)
    cfg.model = dict(
        type='mmdet.SoftTeacher',
        detector=cfg.model,
        data_preprocessor=dict(
            type='mmdet.MultiBranchDataPreprocessor',
            data_preprocessor=cfg.model.data_preprocessor,
        ),
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    cfg.custom_hooks = [dict(type='mmdet.MeanTeacherHook')]
    runner = runs.build(cfg)
    assert any(isinstance(hook, MeanTeacherHook) for hook in runner.hooks)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    drawn: Any = fresh_model(runner, 1)
    reinitialize(runner, 1)
    model = runner.model
    student = runs.state(model.student)
    assert runs.differences(runs.state(drawn.student), student) == []
    # each part draws its own weights: one is copied into the other
    assert runs.differences(runs.state(drawn.teacher), student) != []
    assert runs.differences(runs.state(model.teacher), student) == []


def test_an_average_inside_the_model_begins_anew(runs: Runs, models: Any) -> None:
    @models.register_module()
    class Averaged(RetinaNet):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.average = ExponentialMovingAverage(self.neck, momentum=0.1)

    steps, copied = [], []

    def before(runner: Runner) -> None:
        model = runner.model
        steps.append(int(model.average.steps))
        model.average.update_parameters(model.neck)
        pairs = zip(model.average.module.parameters(), model.neck.parameters())
        copied.append(all(torch.equal(ours, theirs) for ours, theirs in pairs))

    cfg = runs.config('retinanet', REINIT, iters=4)
    cfg.model.type = 'Averaged'
    runs.train(cfg, before=before)
    assert steps == [0, 1, 0, 1]
    # its first update copies
    assert copied == [True, False, True, False]
