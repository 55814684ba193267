"""A stretched schedule takes the same share of the run for everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.registry import PARAM_SCHEDULERS

from mmselfdistill.commands.stretch import length_of, stretched

EPOCHS = dict(max_epochs=12, val_interval=3, val_begin=2, dynamic_intervals=[(10, 1)])
ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=25)


def rates(schedulers: Any, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    built = [
        PARAM_SCHEDULERS.build(dict(each, optimizer=optimizer)) for each in schedulers
    ]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            scheduler.step()
    return found


def test_every_position_of_an_epoch_based_run() -> None:
    cfg = Config(
        dict(
            train_cfg=EPOCHS,
            param_scheduler=[
                dict(
                    type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500
                ),
                dict(type='MultiStepLR', begin=0, end=12, milestones=[8, 11]),
                dict(type='mmengine.ExponentialLR', gamma=0.5, end=INF),
            ],
            custom_hooks=[
                dict(type='PipelineSwitchHook', switch_epoch=10),
                dict(type='EMAHook', momentum=0.1),
            ],
            default_hooks=dict(ema=dict(type='EMAHook', begin_epoch=6), timer=None),
        )
    )
    found = stretched(cfg, 18)
    assert found['train_cfg'] == dict(
        max_epochs=18, val_interval=4, val_begin=3, dynamic_intervals=[(15, 2)]
    )
    warmup, steps, decay = found['param_scheduler']
    assert (warmup['begin'], warmup['end']) == (0, 750)
    assert (steps['end'], steps['milestones']) == (18, [12, 16])
    # as far down after 18 epochs as before after 12
    assert decay['gamma'] ** 18 == pytest.approx(0.5**12)
    assert decay['end'] == INF
    assert [hook.get('switch_epoch') for hook in found['custom_hooks']] == [15, None]
    assert found.default_hooks == dict(
        ema=dict(type='EMAHook', begin_epoch=9), timer=None
    )
    # the config itself is left alone
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.default_hooks.ema.begin_epoch == 6
    assert (cfg.train_cfg, cfg.custom_hooks[0].switch_epoch) == (EPOCHS, 10)


def test_the_learning_rate_is_that_of_the_same_share_of_the_run() -> None:
    schedulers = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', T_max=80, by_epoch=False, begin=20, end=100),
    ]
    cfg = Config(dict(train_cfg=ITERATIONS, param_scheduler=schedulers))
    assert length_of(cfg) == (100, 'iterations')
    found = stretched(cfg, 300)
    assert found['train_cfg'] == dict(ITERATIONS, max_iters=300, val_interval=75)
    before, after = rates(schedulers, 100), rates(found['param_scheduler'], 300)
    # after the warm-up, whose first step is not stretched
    assert after[60::3] == pytest.approx(before[20:], abs=1e-6)
    assert after[-1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize('step', [1, 2, 7])
def test_short_steps_go_as_far_down(step: int) -> None:
    schedulers = [dict(type='StepLR', step_size=step, gamma=0.9)]
    cfg = Config(dict(train_cfg=dict(max_epochs=60), param_scheduler=schedulers))
    (found,) = stretched(cfg, 78)['param_scheduler']
    assert found['step_size'] == {1: 1, 2: 3, 7: 9}[step]
    # in one epoch of the old and of the new run
    before, after = 0.9 ** (1 / step), found['gamma'] ** (1 / found['step_size'])
    assert after == pytest.approx(before ** (60 / 78))


def test_recipes_are_switched_at_the_same_share_of_the_run() -> None:
    recipes = [dict(action_epoch=37, loss=None), dict(action_iter=112)]
    hook = dict(type='SwitchRecipeHook', schedule=recipes)
    ours = dict(type='mmselfdistill.EMATeacherHook', schedule='linear')
    cfg = Config(dict(train_cfg=dict(max_epochs=300), custom_hooks=[hook, ours]))
    found = stretched(cfg, 390)['custom_hooks']
    assert found[0]['schedule'] == [
        dict(action_epoch=48, loss=None),
        dict(action_iter=146),
    ]
    assert found[1] == ours


def test_a_schedule_for_each_optimizer() -> None:
    both = dict(
        generator=[dict(type='StepLR', step_size=40)],
        critic=dict(type='PolyLR', by_epoch=False, end=100),
    )
    # 50.5 is a product in somebody's config
    both['critic']['begin'] = 50.5
    cfg = Config(dict(train_cfg=ITERATIONS, param_scheduler=both))
    found = stretched(cfg, 150)['param_scheduler']
    assert found['critic']['begin'] == 76
    assert found['generator'][0]['step_size'] == 60
    assert found['critic']['end'] == 150


@pytest.mark.parametrize(
    ('train_cfg', 'interval'),
    [
        (dict(max_epochs=10), 2),
        (dict(by_epoch=True, max_epochs=10), 2),
        (dict(type='mmengine.IterBasedTrainLoop', max_iters=10), 2000),
        (dict(by_epoch=False, max_iters=10), 2000),
        # what another loop does by itself is not known
        (dict(type='MyLoop', max_epochs=10), None),
    ],
)
def test_a_longer_run_is_validated_as_often(
    train_cfg: dict[str, Any], interval: int | None
) -> None:
    hooks = dict(checkpoint=dict(type='CheckpointHook', save_begin=4))
    found = stretched(Config(dict(train_cfg=train_cfg, default_hooks=hooks)), 20)
    assert found.train_cfg.get('val_interval') == interval
    assert found.default_hooks.checkpoint.save_begin == 8


def test_a_run_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r'train_cfg: expected max_epochs'):
        length_of(Config(dict(train_cfg=dict(by_epoch=True))))
