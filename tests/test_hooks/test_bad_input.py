"""A wrong setting ends before the first iteration, with one message that helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import LOOPS, MODELS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

GENERATION = 'mmselfdistill.GenerationHook'
EMA = 'mmselfdistill.EMATeacherHook'
FIXED = 'mmselfdistill.SelfDistillHook'
PROJECTED = dict(type='FeatureMSELoss', projector=32)
PKD = dict(type='PKDLoss')
EVERY_2 = dict(type=GENERATION, interval=2, by_epoch=False)
ONLY_FEATURES = dict(logits=None, boxes=None)
NO_TERM = dict(features=None, logits=None, boxes=None)


@MODELS.register_module()
class Plain(BaseModel):  # type: ignore[misc]
    """A model without ``extract_feat``: no family covers it."""

    def __init__(self) -> None:
        super().__init__(dict(type='mmdet.DetDataPreprocessor'))
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        out = self.body(self.stem(inputs / 255))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def refused(runs: Runs, cfg: Config, iteration: int = 0) -> str:
    """Return the message, after a check that nothing was trained or written."""
    before = sorted(Path(cfg.work_dir).glob('*.pth'))
    runner = None
    with pytest.raises((ValueError, TypeError)) as caught:
        runner = runs.build(cfg)
        runner.train()
    if runner is not None:
        assert runner.iter == iteration
        assert not runner.model._forward_hooks
    assert sorted(Path(cfg.work_dir).glob('*.pth')) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (dict(loss_weight=-1), ['loss_weight', '-1', '>= 0']),
        (dict(loss_weight='1'), ['loss_weight', "'1'"]),
        (dict(loss_weight=float('inf')), ['loss_weight', 'inf']),
        (dict(loss_weight=True), ['loss_weight', 'True']),
        (dict(momentum=1.5), ['momentum', '1.5', '[0, 1]']),
        (dict(momentum=-0.1), ['momentum', '-0.1', '[0, 1]']),
        (dict(momentum='high'), ['momentum', "'high'", '[0, 1]']),
        (dict(momentm=0.9), ['EMATeacherHook', "'momentm'", "mean 'momentum'"]),
        (dict(schedule='cosin'), ['schedule.type', "'cosin'", "mean 'cosine'"]),
        (dict(schedule=dict(warmupp=0.1)), ["'warmupp'", "mean 'warmup'"]),
        (dict(type=GENERATION), ['either interval or generations', 'None']),
        (
            dict(type=GENERATION, interval=2, generations=2),
            ['either interval or generations', 'interval=2'],
        ),
        (dict(type=GENERATION, interval=0), ['interval', '>= 1', 'got 0']),
        (dict(type=GENERATION, interval=-3), ['interval', '>= 1', '-3']),
        (dict(type=GENERATION, interval=1.5), ['interval', 'integer', '1.5']),
        (dict(type=GENERATION, generations=0), ['generations', '>= 1', 'got 0']),
        (dict(type=GENERATION, generations='2'), ['generations', 'integer', "'2'"]),
        (
            dict(type=GENERATION, interval=2, students='reinit'),
            ['GenerationHook', "'students'", "mean 'student'"],
        ),
        (dict(terms=[PKD]), ['terms', 'expected a dict', 'PKDLoss']),
        (dict(terms=3), ['terms', 'expected a dict', 'got 3']),
        (
            dict(type=GENERATION, interval=2, student='continu'),
            ['student', "'continu'", "mean 'continue'", "'reinit'"],
        ),
        (
            dict(type=GENERATION, interval=2),
            ['by_epoch=True', 'IterBasedTrainLoop', 'by_epoch=False'],
        ),
        (
            dict(type=GENERATION, interval=2, by_epoch='False'),
            ['by_epoch', 'True or False', "'False'"],
        ),
        (dict(seams=None), ['seams', 'a list of paths', 'None']),
        (dict(seams=5), ['seams', 'a list of paths', 'got 5']),
        (dict(task_weight=dict(begin=0.5)), ['task_weight', "'constant'", "'linear'"]),
        (dict(task_weight='constant'), ['task_weight', "'constant'", "'linear'"]),
        (dict(type=FIXED), ['teacher: expected a path or URL', 'None']),
        (dict(type=FIXED, teacher=None), ['teacher', 'path or URL', 'None']),
        (
            dict(type=FIXED, teacher='a.pth', term={}),
            ['SelfDistillHook', "'term'", "mean 'terms'"],
        ),
        (
            dict(type=FIXED, checkpoint='a.pth'),
            ["SelfDistillHook has no argument 'checkpoint'; valid: ", "'teacher'"],
        ),
        (
            dict(teacher='a.pth'),
            ["EMATeacherHook has no argument 'teacher'; SelfDistillHook has"],
        ),
        (dict(view=dict(_delete_='no')), ['view', '_delete_']),
        (
            dict(unlabeled=dict(data='x', view=dict(_delete_='no'))),
            ['unlabeled.view._delete_', 'True or False', "'no'"],
        ),
    ],
    ids=str,
)
def test_hook_argument(hook: dict[str, Any], words: list[str], runs: Runs) -> None:
    message = refused(runs, runs.config('gfl', {'type': EMA, **hook}, iters=4))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ('terms', 'words'),
    [
        (
            dict(logits=dict(type='SoftTargetLos')),
            ['terms.logits.type', "'SoftTargetLos'", "mean 'SoftTargetLoss'"],
        ),
        (
            # a loss that has no argument of its own
            dict(features=dict(wieght=2)),
            ['terms.features', "'wieght'", "mean 'weight'"],
        ),
        (
            # it would be due after half of the run
            dict(logits=dict(type='mmdet.L1Loss')),
            ['terms.logits.type', 'mmdet.L1Loss', 'student, teacher, kind=...'],
        ),
        (
            dict(mine=dict(site='features')),
            ['terms.mine', 'type', "'PKDLoss'", "'SoftTargetLoss'"],
        ),
        (
            dict(logits=dict(site='logit')),
            ['terms.logits.site', "'logit'", "mean 'logits'", "'features'", 'GFL'],
        ),
        (
            dict(mine=dict(site='backbone.layr3', **PKD)),
            ['terms.mine.site', "'backbone.layr3'", "mean 'backbone.layer3'"],
        ),
        (
            dict(masks=dict(type='MaskDistillLoss')),
            ['terms.masks.site', "'masks'", "'boxes'", 'single-stage'],
        ),
        (
            dict(logits=dict(temprature=2)),
            ['terms.logits', 'SoftTargetLoss', "'temprature'", "mean 'temperature'"],
        ),
        (
            dict(logits=dict(temperature=-2)),
            ['terms.logits', 'temperature', '> 0', '-2'],
        ),
        (dict(logits=dict(weight=-2)), ['terms.logits.weight', '>= 0', '-2']),
        (dict(logits=dict(weight='big')), ['terms.logits.weight', "'big'"]),
        (dict(logits=dict(weight=float('nan'))), ['terms.logits.weight', 'nan']),
        (
            dict(logits=dict(schedule=dict(begin=2))),
            ['terms.logits.schedule.begin', '[0, 1]', 'got 2'],
        ),
        (dict(logit=None), ['terms.logit', 'no such term', "mean 'logits'"]),
        (dict(logits=1.0), ['terms.logits', 'dict', '1.0']),
        (NO_TERM, ['no term is left', 'boxes, features, logits', 'loss_weight=0']),
        (dict(_delete_=True), ['no term is left', 'boxes, features, logits']),
    ],
    ids=str,
)
def test_term(terms: dict[str, Any], words: list[str], runs: Runs) -> None:
    message = refused(runs, runs.config('gfl', dict(type=EMA, terms=terms), iters=4))
    assert [word for word in words if word not in message] == []


def test_two_hooks(runs: Runs) -> None:
    cfg = runs.config('gfl', EVERY_2, iters=4)
    cfg.default_hooks.other = dict(type=EMA, terms=ONLY_FEATURES)
    message = refused(runs, cfg)
    for word in ('one hook', "'GenerationHook'", "'EMATeacherHook'", 'default_hooks'):
        assert word in message


@pytest.mark.parametrize('priority', [49, 'VERY_LOW', 'VERY_HIGH'])
def test_a_place_behind_other_hooks(priority: Any, runs: Runs) -> None:
    cfg = runs.config('gfl', dict(EVERY_2, priority=priority), iters=4)
    message = refused(runs, cfg)
    assert message.startswith('self_distill: priority=') and 'remove it' in message


@LOOPS.register_module()
class Endless(BaseLoop):
    """A loop of one's own that does not say how long it is."""

    iter = epoch = 0

    def run(self) -> None:
        self.runner.call_hook('before_train')


def test_a_loop_of_unknown_length(runs: Runs) -> None:
    cfg = runs.config('gfl', dict(type=EMA), iters=1)
    cfg.train_cfg, cfg.param_scheduler = dict(type='Endless'), None
    with pytest.raises(ValueError, match='self_distill: Endless has no max_iters: '):
        runs.train(cfg)


def test_teacher_file(runs: Runs, tmp_path: Path) -> None:
    def message_for(path: Path, content: Any = None) -> str:
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        hook = dict(type=FIXED, teacher=str(path))
        message = refused(runs, runs.config('gfl', hook, iters=4))
        assert message.startswith('teacher: ') and str(path) in message
        return message

    assert 'cannot load' in message_for(tmp_path / 'missing.pth')
    broken = tmp_path / 'broken.pth'
    for content, reason in (
        (b'no checkpoint', "torch.save did not write it: it begins with b'no check'"),
        (b'', 'the file is empty'),
        (b'PK\x03\x04', 'its end is missing: it was cut off'),
    ):
        assert f'cannot load {str(broken)!r}: {reason}' in message_for(broken, content)
    for content in ([1], torch.zeros(3), dict(meta=1), dict(state_dict=[1]), {1: 2}):
        assert 'no state_dict' in message_for(tmp_path / 'empty.pth', content)

    plain: Any = runs.build(runs.config('gfl', iters=4)).model.state_dict()
    plain['bbox_head.gfl_cls.weight'][0, 0, 0, 0] = torch.nan
    message = message_for(tmp_path / 'nan.pth', dict(plain))
    count = len(plain)
    found = f"has NaN or infinity in 1 of {count} tensors, 'bbox_head.gfl_cls.weight'"
    assert found in message
    plain['bbox_head.gfl_cls.weight'][0, 0, 0, 0] = torch.inf
    assert found in message_for(tmp_path / 'inf.pth', dict(plain))
    plain['bbox_head.gfl_cls.weight'][0, 0, 0, 0] = 0
    plain['backbone.bn1.running_var'][0] = torch.inf
    assert "'backbone.bn1.running_var'" in message_for(tmp_path / 'v.pth', dict(plain))
    assert 'is a folder: name a file in it' in message_for(tmp_path)

    weights = dict(runs.build(runs.config('gfl', iters=4)).model.state_dict())
    shape = tuple(weights['bbox_head.gfl_cls.weight'].shape)
    del weights['backbone.conv1.weight'], weights['backbone.bn1.bias']
    weights['backbone.stem.weight'] = torch.zeros(1)
    weights['bbox_head.gfl_cls.weight'] = torch.zeros(3, 2)
    message = message_for(tmp_path / 'other.pth', dict(state_dict=weights))
    assert 'another model than this GFL' in message
    assert message.splitlines()[1:] == [
        '  missing: backbone.conv1.weight, backbone.bn1.bias',
        '  unexpected: backbone.stem.weight',
        f'  another shape: bbox_head.gfl_cls.weight: (3, 2) in the file, {shape} here',
    ]
    more = {**runs.build(runs.config('gfl', iters=4)).model.state_dict()}
    more['backbone.grid'] = torch.zeros(1)
    message = message_for(tmp_path / 'more.pth', dict(state_dict=more))
    assert message.splitlines()[1] == '  unexpected: backbone.grid'
    assert 'A buffer that the model makes in its first forward' in message


def test_uncovered_model(runs: Runs) -> None:
    def config(terms: dict[str, Any] | None) -> Config:
        cfg = runs.config('gfl', {**EVERY_2, 'terms': terms}, iters=4)
        return Config({**cfg, 'model': dict(type='Plain')})

    for terms in (None, dict(mine=dict(site='features', **PKD))):
        message = refused(runs, config(terms))
        assert 'no model family covers Plain' in message
        looked_for = ('two-stage detector', 'single-stage detector', 'segmentor')
        assert [kind for kind in looked_for if kind not in message] == []
        assert "'stem', 'body'" in message
        assert "site='backbone.layer3'" in message and 'FAMILIES' in message
    # what the message proposes
    weighted = dict(mine=dict(site='body.0', type='FeatureMSELoss', weight=3.0))
    runner = runs.train(config(weighted))
    taught = runner.message_hub.get_scalar('train/loss_sd_mine').data[0]
    assert runner.iter == 4 and (taught[:2] == 0).all() and taught[3] > 0


def test_reinit_needs_a_fresh_model(runs: Runs) -> None:
    cfg = runs.config('gfl', {**EVERY_2, 'student': 'reinit'}, iters=4)
    cfg.load_from = 'pretrained.pth'
    loads = ["load_from='pretrained.pth'", "'continue'"]
    for number, (build, words) in enumerate(
        (
            (lambda: Runner(**cfg), ['Runner.from_cfg', 'empty']),
            (lambda: Runner(**cfg, cfg=dict(model=cfg.model)), loads),
            (lambda: Runner.from_cfg(cfg), loads),
        )
    ):
        cfg.experiment_name = f'reinit-{number}'
        runner = build()
        with pytest.raises(ValueError, match="student='reinit'") as caught:
            runner.train()
        assert [word for word in words if word not in str(caught.value)] == []
        assert runner.iter == 0


@pytest.mark.parametrize(
    ('first', 'then', 'words'),
    [
        (None, EVERY_2, ['no state of mmselfdistill', 'load_from without resume']),
        (
            EVERY_2,
            {**EVERY_2, 'interval': 3},
            ['that the config gives): 2 in the checkpoint, 3 now'],
        ),
        (
            EVERY_2,
            {**EVERY_2, 'student': 'reinit'},
            ["student: 'continue' in the checkpoint, 'reinit' now"],
        ),
        (
            EVERY_2,
            dict(type=GENERATION, generations=2),
            ["student='reinit'): False in the checkpoint, True now"],
        ),
        (
            EVERY_2,
            dict(type=EMA),
            ["hook: 'GenerationHook' in the checkpoint, 'EMATeacherHook' now"],
        ),
        (
            EVERY_2,
            {**EVERY_2, 'terms': dict(logits=dict(weight=2, temperature=3))},
            [
                'terms.logits.weight: 1.0 in the checkpoint, 2.0 now',
                'terms.logits.temperature: None in the checkpoint, 3 now',
            ],
        ),
        (
            {**EVERY_2, 'terms': ONLY_FEATURES},
            EVERY_2,
            ["terms.logits.type: None in the checkpoint, 'SoftTargetLoss' now"],
        ),
        (
            dict(type=EMA, terms=dict(features=PROJECTED)),
            dict(type=EMA, terms=dict(features=dict(PROJECTED, projector=None))),
            [
                'terms.features.projector: 32 in the checkpoint, None now',
                "which the optimizer trains: ['features'] in the checkpoint, [] now",
            ],
        ),
        (
            dict(type=EMA),
            dict(type=EMA, schedule='linear'),
            ["terms.features.schedule: {'type': 'constant'", "'linear' now"],
        ),
    ],
)
def test_resume_of_another_run(
    first: dict[str, Any] | None, then: dict[str, Any], words: list[str], runs: Runs
) -> None:
    cfg = runs.config('gfl', first, iters=3)
    runs.train(cfg)
    cfg.train_cfg.max_iters = 6
    cfg.default_hooks.self_distill = then
    # before the optimizer is loaded, whose message would say less
    message = refused(runs, Config({**cfg, 'resume': True}))
    assert message.startswith('resume: ')
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize('weighs', [True, False], ids=['none', 'weight 0'])
@pytest.mark.parametrize('first', [True, False], ids=['left out', 'added'])
def test_images_without_labels_may_change(
    first: bool, weighs: bool, runs: Runs
) -> None:
    images = dict(data=str(runs.data / 'train2017'), batch_size=1)
    hooks = [dict(type=EMA, unlabeled=images), dict(type=EMA)]
    if not weighs:
        hooks[1].update(unlabeled=dict(images, weight=0.0))
    cfg = runs.config('faster_rcnn', hooks[not first], iters=2)
    runs.train(cfg)
    cfg.train_cfg.max_iters = 4
    cfg.default_hooks.self_distill = hooks[first]
    runner = runs.train(Config({**cfg, 'resume': True}))
    assert runner.iter == 4
    # the other terms are still compared
    cfg.train_cfg.max_iters = 6
    cfg.default_hooks.self_distill = dict(hooks[first], terms=dict(logits=None))
    message = refused(runs, Config({**cfg, 'resume': True}))
    assert "terms.logits.type: 'SoftTargetLoss' in the checkpoint, None now" in message
    assert 'proposals' not in message


def test_another_batch_size_where_boundaries_are_counted_within_epochs(
    runs: Runs,
) -> None:
    hook = dict(EVERY_2, interval=3)
    cfg = runs.config('gfl', hook, epochs=2)
    runs.train(cfg)
    cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size = 4, 1
    message = refused(runs, Config({**cfg, 'resume': True}))
    steps = runs.steps_an_epoch
    said = f'iterations_per_epoch: {steps} in the checkpoint, {2 * steps} now'
    assert said in message


def test_resume_of_another_model_or_a_broken_state(runs: Runs) -> None:
    cfg = runs.config('gfl', dict(type=EMA), iters=3)
    runs.train(cfg)
    (path,) = Path(cfg.work_dir).glob('*.pth')
    cfg.train_cfg.max_iters = 6
    resumed = Config({**cfg, 'resume': True})
    checkpoint = torch.load(path, weights_only=False)
    ours = checkpoint['mmselfdistill']
    teacher = {**ours['teacher'], 'backbone.conv1.weight': torch.zeros(1)}
    del teacher['bbox_head.gfl_cls.weight']
    torch.save({**checkpoint, 'mmselfdistill': {**ours, 'teacher': teacher}}, path)
    message = refused(runs, resumed, 3)
    assert 'teacher: missing: bbox_head.gfl_cls.weight' in message
    assert 'teacher: another shape: backbone.conv1.weight: (1,) in the file' in message
    for broken in ('', {}, {'teacher': None}):
        torch.save({**checkpoint, 'mmselfdistill': broken}, path)
        message = refused(runs, resumed)
        assert message.startswith("resume: the state under 'mmselfdistill' in the")
