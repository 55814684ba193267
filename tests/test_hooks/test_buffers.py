"""The teacher's buffers: those that are not saved, come late, or change their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import Tensor

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant', momentum=0.5)
EVERY_2 = dict(type='mmselfdistill.GenerationHook', interval=2, by_epoch=False)
RetinaNet: Any = MODELS.get('mmdet.RetinaNet')


@pytest.fixture
def buffered() -> Any:
    @MODELS.register_module()
    class Buffered(RetinaNet):
        """Counts, in buffers of every kind, the images that it has seen."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            # one that is None, and one that has no size yet
            self.neck.register_buffer('later', None)
            self.neck.register_buffer('sized', torch.zeros(0), persistent=False)

        def extract_feat(self, inputs: Tensor) -> Any:
            neck = self.neck
            if neck.later is None:
                neck.later = torch.zeros(())
                neck.sized = torch.zeros(3)
                neck.register_buffer('saved', torch.zeros(()))
                neck.register_buffer('unsaved', torch.zeros(()), persistent=False)
            if neck.fpn_convs[0].conv.weight.requires_grad:
                for name in ('later', 'sized', 'saved', 'unsaved'):
                    setattr(neck, name, getattr(neck, name) + len(inputs))
            return super().extract_feat(inputs)

    yield Buffered
    MODELS.module_dict.pop('Buffered')


class Margins(Hook):
    """Fills an unsaved buffer when training begins, after the teacher was made."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        bare: Any = runner.model
        bare.neck.sized = torch.full((3,), 0.5)


@pytest.mark.parametrize('kind', ['file', 'ema', 'generation'])
def test_an_unsaved_buffer_that_a_hook_fills_is_the_teachers_too(
    kind: str, runs: Runs, buffered: Any
) -> None:
    hooks = dict(ema=EMA, generation=EVERY_2)
    if kind == 'file':
        plain = runs.config('retinanet', iters=1)
        runs.train(plain)
        file = f'{plain.work_dir}/iter_1.pth'
        hooks['file'] = dict(type='mmselfdistill.SelfDistillHook', teacher=file)
    cfg = runs.config('retinanet', hooks[kind], iters=1)
    cfg.model.type = 'Buffered'
    cfg.custom_hooks = [Margins()]
    found: list[Tensor] = []

    def note(runner: Runner) -> None:
        distiller = runs.hook(runner).distiller
        teacher = distiller.teacher or distiller.trial
        found.append(teacher.neck.sized.clone())

    runs.train(cfg, note)
    assert found[0].tolist() == [0.5] * 3


@pytest.mark.parametrize('hook', [EMA, EVERY_2], ids=['ema', 'generation'])
def test_every_buffer_is_resumed(
    hook: dict[str, Any], runs: Runs, buffered: Any
) -> None:
    cfg = runs.config('retinanet', hook, iters=5)
    cfg.model.type = 'Buffered'
    cfg.default_hooks.checkpoint.interval = 3
    runs.train(cfg, stop_at=4)
    held = runs.checkpoint(cfg)['mmselfdistill']
    seen = 6 if hook is EMA else 4
    neck = {k: v.tolist() for k, v in held['buffers'].items() if 'neck' in k}
    assert neck == {'neck.sized': [seen] * 3, 'neck.unsaved': seen}
    assert held['teacher']['neck.later'] == held['teacher']['neck.saved'] == seen
    found: list[dict[str, Any]] = []

    def before(runner: Runner) -> None:
        if not found:
            teacher = runs.hook(runner).distiller.teacher
            own = teacher.neck.named_buffers(recurse=False)
            found.append({key: buffer.tolist() for key, buffer in own})
            saved = teacher.state_dict()
            assert 'neck.saved' in saved and 'neck.unsaved' not in saved

    runner = runs.train(Config({**cfg, 'resume': True}), before)
    assert found == [dict(later=seen, sized=[seen] * 3, saved=seen, unsaved=seen)]
    assert runner.iter == 5


def test_a_first_generation_has_none(runs: Runs, buffered: Any) -> None:
    for iters, some in ((2, False), (3, True)):
        cfg = runs.config('retinanet', EVERY_2, iters=iters)
        runs.train(cfg)
        assert bool(runs.checkpoint(cfg)['mmselfdistill']['buffers']) == some
        longer = Config({**cfg, 'resume': True})
        longer.train_cfg.max_iters = 5
        assert runs.train(longer).iter == 5
