"""A loss with parameters is trained, scheduled, averaged, saved and resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

PROJECTED: dict[str, Any] = dict(
    type='mmselfdistill.EMATeacherHook',
    momentum=0.5,
    schedule='constant',
    terms=dict(features=dict(type='FeatureMSELoss', projector=32, weight=1.0)),
)


def projector(runs: Runs, runner: Runner) -> torch.Tensor:
    (term,) = (t for t in runs.hook(runner).distiller.terms if t.name == 'features')
    weight: torch.Tensor = term.loss.projector
    return weight


def test_it_learns_in_a_group_of_its_own_and_is_no_part_of_the_student(
    runs: Runs,
) -> None:
    cfg = runs.config('retinanet', PROJECTED, iters=3)
    rates: list[tuple[float, float]] = []

    def note(runner: Runner) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        rates.append((groups[0]['lr'], groups[-1]['lr']))

    runner = runs.train(cfg, after=note)
    weight = projector(runs, runner)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [id(p) for p in groups[-1]['params']] == [id(weight)]
    assert not torch.equal(weight.detach(), torch.eye(32))
    # the warm-up and the cosine: the rates differ, and are the same in all groups
    assert all(ours == theirs for ours, theirs in rates) and len(set(rates)) == 2
    names = [name for name, _ in runner.model.named_parameters()]
    assert not any('projector' in name for name in names)
    saved = runs.checkpoint(cfg)
    stock = runs.build(runs.config('retinanet', iters=3)).model
    assert saved['state_dict'].keys() == stock.state_dict().keys()
    assert saved['mmselfdistill']['losses'].keys() == {'features'}
    found = saved['mmselfdistill']['losses']['features']['projector']
    assert torch.equal(found, weight.detach())


ADAM = dict(type='AdamW', lr=1e-3, weight_decay=0.01)
SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = dict(
    one_cycle=(
        ADAM,
        dict(type='OneCycleLR', eta_max=1e-2, total_steps=12, by_epoch=False),
    ),
    momentum=(
        ADAM,
        dict(type='CosineAnnealingMomentum', T_max=12, eta_min=0.5, by_epoch=False),
    ),
    plateau=(
        ADAM,
        # no AP is better by 1
        dict(
            type='ReduceOnPlateauLR',
            monitor='coco/bbox_mAP',
            rule='greater',
            threshold=1.0,
            threshold_rule='abs',
            patience=0,
            factor=0.5,
            min_value=4e-4,
        ),
    ),
)


@pytest.mark.parametrize('kind', SCHEDULES)
def test_it_follows_every_kind_of_schedule(kind: str, runs: Runs) -> None:
    optimizer, scheduler = SCHEDULES[kind]
    cfg = runs.config('retinanet', PROJECTED, epochs=4, val_interval=1)
    # with settings of its own, MMEngine's wrapper notes the optimizer's too
    paramwise = dict(bias_decay_mult=0.0)
    cfg.optim_wrapper = dict(optimizer=optimizer, paramwise_cfg=paramwise)
    cfg.param_scheduler = [scheduler]
    cfg.model.test_cfg.score_thr = 0.0
    cfg.val_evaluator.ann_file = f'{runs.data}/annotations/instances_val2017.json'
    found: list[tuple[Any, Any]] = []

    def note(runner: Runner) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        first, last = ((g['lr'], g['betas']) for g in (groups[0], groups[-1]))
        found.append((first, last))

    runs.train(cfg, after=note)
    assert all(first == last for first, last in found)
    assert len({first for first, _ in found}) == (3 if kind == 'plateau' else 11)


def test_a_frozen_first_group_is_not_its_measure(runs: Runs) -> None:
    cfg = runs.config('retinanet', PROJECTED, iters=4)
    still = dict(custom_keys=dict(backbone=dict(lr_mult=0.0)))
    cfg.optim_wrapper = dict(optimizer=ADAM, paramwise_cfg=still)
    warm_up = dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=3)
    cfg.param_scheduler = [warm_up]
    found: list[list[float]] = []

    def note(runner: Runner) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        found.append([group['lr'] for group in groups])

    runs.train(cfg, after=note)
    # groups of the backbone, of the head, and the projector
    for rates in found:
        assert rates[0] == 0 and rates[-1] == max(rates[:-1]) > 0


def test_its_rate_is_scaled_with_the_batch(runs: Runs) -> None:
    cfg = runs.config('retinanet', PROJECTED, iters=1)
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=16)
    groups = runs.train(cfg).optim_wrapper.optimizer.param_groups
    stock = runs.train(runs.config('retinanet', PROJECTED, iters=1))
    own = stock.optim_wrapper.optimizer.param_groups
    assert groups[-1]['lr'] == groups[0]['lr'] == own[0]['lr'] / 8


def test_a_loss_that_draws_and_counts_leaves_the_run_alone(
    runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(1))
            self.register_buffer('calls', torch.zeros(()))

        def forward(self, student: Any, teacher: Any, kind: str = '') -> Any:
            self.calls += 1
            kept = nn.functional.dropout(student, 0.5)
            return self.scale * (kept - teacher).square().mean(1)

    terms = dict(_delete_=True, mine=dict(type='Drawing', site='features'))
    hook = {**PROJECTED, 'terms': terms}
    plain = runs.train(runs.config('deeplabv3plus', iters=2))
    silent = runs.config('deeplabv3plus', dict(hook, loss_weight=0.0), iters=2)
    runner = runs.train(silent)
    assert runs.differences(runs.state(plain.model), runs.state(runner.model)) == []
    (term,) = runs.hook(runner).distiller.terms
    assert term.loss.calls == 0
    (term,) = runs.hook(
        runs.train(runs.config('deeplabv3plus', hook, iters=2))
    ).distiller.terms
    # the four stages of each iteration
    assert term.loss.calls == 8


def test_a_part_of_it_that_is_frozen_stays(runs: Runs, models: Any) -> None:
    @models.register_module()
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.random = nn.Linear(16, 4).requires_grad_(False)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, student: Any, teacher: Any, **_: Any) -> Any:
            difference = (student - teacher).flatten(2)[..., :16]
            return self.scale * self.random(difference).square().mean((1, 2))

    terms = dict(_delete_=True, mine=dict(type='Projected', site='features'))
    cfg = runs.config('deeplabv3plus', {**PROJECTED, 'terms': terms}, iters=3)
    begun: list[torch.Tensor] = []

    def note(runner: Runner) -> None:
        (term,) = runs.hook(runner).distiller.terms
        begun.append(term.loss.random.weight.clone())

    runner = runs.train(cfg, before=note)
    (term,) = runs.hook(runner).distiller.terms
    assert torch.equal(term.loss.random.weight, begun[0]) and term.loss.scale != 1
    (trained,) = runner.optim_wrapper.optimizer.param_groups[-1]['params']
    assert trained is term.loss.scale


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_it_is_resumed(runs: Runs) -> None:
    whole = runs.train(runs.config('retinanet', PROJECTED, iters=4))
    cfg = runs.config('retinanet', PROJECTED, iters=4)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.work_dir = runs.config('retinanet', PROJECTED, iters=4).work_dir
    runs.train(cfg, stop_at=2)
    cfg.resume = True
    runner = runs.train(cfg)
    assert torch.equal(projector(runs, runner), projector(runs, whole))
    assert runs.differences(runs.state(whole.model), runs.state(runner.model)) == []


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_a_hook_may_freeze_it_during_a_run_that_is_resumed(runs: Runs) -> None:
    def freeze(runner: Runner) -> None:
        if runner.iter >= 1:
            projector(runs, runner).requires_grad_(False)

    cfg = runs.config('retinanet', PROJECTED, iters=4)
    cfg.default_hooks.checkpoint.interval = 2
    runs.train(cfg, freeze, stop_at=3)
    (saved,) = runs.checkpoint(cfg)['mmselfdistill']['losses'].values()
    cfg.resume = True
    runner = runs.train(cfg, freeze)
    assert runner.iter == 4
    assert torch.equal(projector(runs, runner), saved['projector'])


@pytest.mark.usefixtures('stock_resumes_in_iterations')
def test_the_order_of_the_terms_is_of_no_account(runs: Runs) -> None:
    mine = dict(type='FeatureMSELoss', projector=32, weight=1.0, site='features')
    terms = dict(upper=mine, lower=dict(mine, weight=3.0), features=None)
    states = []
    for names in (['upper', 'lower'], ['lower', 'upper']):
        hook = {**PROJECTED, 'terms': dict({n: terms[n] for n in names}, features=None)}
        cfg = runs.config('retinanet', {**PROJECTED, 'terms': terms}, iters=4)
        cfg.optim_wrapper.optimizer = ADAM
        cfg.default_hooks.checkpoint.interval = 2
        runs.train(cfg, stop_at=2)
        cfg.default_hooks.self_distill = hook
        runner = runs.train(Config({**cfg, 'resume': True}))
        assert runner.iter == 4
        states.append(runs.state(runner.model))
    assert runs.differences(*states) == []


def test_one_for_images_without_labels_is_left_out_with_them(
    runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer('calls', torch.zeros(()))

        def forward(self, student: Any, teacher: Any, kind: str = '') -> Any:
            self.calls += 1
            return (student - teacher).square().mean(1)

    counting = dict(type='Counting', site='features', on='unlabeled')
    images = dict(data=str(runs.data / 'train2017'), batch_size=1)
    hook = {**PROJECTED, 'terms': dict(features=None, mine=counting)}
    cfg = runs.config('retinanet', dict(hook, unlabeled=images), iters=2)
    runs.train(cfg)
    assert float(runs.checkpoint(cfg)['mmselfdistill']['losses']['mine']['calls']) > 0
    cfg.default_hooks.self_distill = dict(hook, terms=dict(features=None))
    cfg.train_cfg.max_iters, cfg.resume = 4, True
    runner = runs.train(cfg)
    assert runner.iter == 4
    names = {term.name for term in runs.hook(runner).distiller.terms}
    assert names == {'logits', 'boxes'}


def test_fresh_students_begin_with_a_fresh_projector(runs: Runs) -> None:
    hook = {**PROJECTED, 'type': 'mmselfdistill.GenerationHook', 'student': 'reinit'}
    hook.pop('momentum')
    begins: list[torch.Tensor] = []

    def note(runner: Runner) -> None:
        if runner.iter in (2, 4):
            begins.append(projector(runs, runner).detach().clone())

    cfg = runs.config('retinanet', {**hook, 'interval': 2, 'by_epoch': False}, iters=6)
    runs.train(cfg, before=note)
    assert [torch.equal(each, torch.eye(32)) for each in begins] == [True, True]


def test_fresh_students_of_a_resumed_run_too(runs: Runs) -> None:
    hook = {**PROJECTED, 'type': 'mmselfdistill.GenerationHook', 'student': 'reinit'}
    hook.pop('momentum')
    hook.update(interval=3, by_epoch=False)
    begins: list[torch.Tensor] = []

    def note(runner: Runner) -> None:
        if runner.iter == 6:
            begins.append(projector(runs, runner).detach().clone())

    cfg = runs.config('retinanet', hook, iters=7)
    cfg.default_hooks.checkpoint.interval = 5
    stopped = runs.train(cfg, stop_at=5)
    assert not torch.equal(projector(runs, stopped), torch.eye(32))
    cfg.resume = True
    runs.train(cfg, before=note)
    assert [torch.equal(each, torch.eye(32)) for each in begins] == [True]


def test_fresh_students_of_a_run_resumed_with_another_seed_too(
    runs: Runs, models: Any
) -> None:
    @models.register_module()
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(32))

        def forward(self, student: Any, teacher: Any, kind: str = '') -> Any:
            difference = (student - teacher).square().mean((2, 3))
            return (self.scale * difference).sum(1)

    terms = dict(_delete_=True, mine=dict(type='Random', site='features'))
    hook = dict(type='mmselfdistill.GenerationHook', student='reinit', terms=terms)
    begins: list[torch.Tensor] = []

    def note(runner: Runner) -> None:
        (term,) = runs.hook(runner).distiller.terms
        if runner.iter in (0, 6):
            begins.append(term.loss.scale.detach().clone())

    cfg = runs.config('retinanet', {**hook, 'interval': 3, 'by_epoch': False}, iters=7)
    cfg.default_hooks.checkpoint.interval = 5
    runs.train(cfg, before=note, stop_at=5)
    cfg.resume, cfg.randomness = True, dict(seed=1)
    runs.train(cfg, before=note)
    assert len(begins) == 2 and torch.equal(*begins)


def test_another_number_of_channels_is_refused_before_a_step(runs: Runs) -> None:
    terms = dict(features=dict(type='FeatureMSELoss', projector=16))
    steps: list[int] = []
    try:
        cfg = runs.config('retinanet', {**PROJECTED, 'terms': terms}, iters=2)
        runs.train(cfg, after=lambda runner: steps.append(runner.iter))
    except ValueError as error:
        assert 'terms.features' in str(error) and '16' in str(error)
        assert '32' in str(error)
    else:
        raise AssertionError('it trains')
    assert steps == []
