"""A fixed teacher from a file, and a student that is left as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from torch import Tensor

    from tests.test_hooks.conftest import Runs


def fixed(path: Path, **settings: Any) -> dict[str, Any]:
    return dict(type='mmselfdistill.SelfDistillHook', teacher=str(path), **settings)


def weights_of(runs: Runs, name: str, seed: int) -> dict[str, Tensor]:
    """Return initial weights that differ from those of the runs."""
    cfg = runs.config(name, iters=1)
    cfg.randomness.seed = seed
    model = runs.build(cfg).model
    model.init_weights()
    return runs.state(model)


@pytest.mark.parametrize('form', ['bare', 'state_dict', 'ddp'])
def test_forms_of_the_file(form: str, runs: Runs, tmp_path: Path) -> None:
    weights = weights_of(runs, 'gfl', 5)
    content: dict[str, Any] = weights
    if form == 'state_dict':
        content = dict(state_dict=weights, meta=dict(epoch=1))
    elif form == 'ddp':
        content = {f'module.{key}': tensor for key, tensor in weights.items()}
    torch.save(content, tmp_path / 'teacher.pth')
    cfg = runs.config('gfl', fixed(tmp_path / 'teacher.pth'), iters=1)
    runner = runs.train(cfg)
    teacher = runs.hook(runner).distiller.teacher
    assert runs.differences(weights, runs.state(teacher)) == []
    assert runs.log(runner).count(f'The teacher is {tmp_path}/teacher.pth.') == 1


def test_checkpoint_of_a_distilled_run(runs: Runs) -> None:
    ema = dict(type='mmselfdistill.EMATeacherHook', schedule='constant')
    first = runs.config('gfl', ema, iters=2)
    student = runs.state(runs.train(first).model)
    held = runs.checkpoint(first)
    assert runs.differences(student, held['mmselfdistill']['teacher']) != []
    path = Path((Path(first.work_dir) / 'last_checkpoint').read_text())
    runner = runs.train(runs.config('gfl', fixed(path), iters=1))
    # its student teaches, not its teacher
    teacher = runs.hook(runner).distiller.teacher
    assert runs.differences(student, runs.state(teacher)) == []


@pytest.mark.parametrize('name', ['retinanet', 'cascade_mask_rcnn', 'segformer'])
def test_teaches_over_the_run_and_stays(name: str, runs: Runs, tmp_path: Path) -> None:
    weights = weights_of(runs, name, 5)
    torch.save(weights, tmp_path / 'teacher.pth')
    given: list[float] = []

    def before(runner: Runner) -> None:
        given.append(runs.hook(runner).distiller.weights()['logits'])

    hook = fixed(tmp_path / 'teacher.pth', terms=dict(logits=dict(weight=3.0)))
    runner = runs.train(runs.config(name, hook, iters=4), before)
    waves = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    cosine = [3.0 * (0.01 + 0.99 * wave) for wave in waves]
    torch.testing.assert_close(given, cosine)
    values = runner.message_hub.get_scalar('train/loss_sd_logits').data[0]
    assert len(values) == 4 and (values > 0).all()

    teacher = runs.hook(runner).distiller.teacher
    assert runs.differences(weights, runs.state(teacher)) == []
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_student_learns_the_teachers_logits(runs: Runs, tmp_path: Path) -> None:
    torch.save(weights_of(runs, 'gfl', 5), tmp_path / 'teacher.pth')
    terms = dict(features=None, boxes=None, logits=dict(weight=1000.0))
    hook = fixed(tmp_path / 'teacher.pth', terms=terms, schedule='constant')
    runner = runs.train(runs.config('gfl', hook, iters=12))
    values = runner.message_hub.get_scalar('train/loss_sd_logits').data[0]
    assert values[-3:].mean() < 0.5 * values[:3].mean()


def test_classes_in_another_order_are_named(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / 'teacher.pth'
    own = runs.config('gfl', iters=1)
    classes = runs.build(own).train_dataloader.dataset.metainfo['classes']
    swapped = [classes[0], classes[2], classes[1], *classes[3:]]
    metas: list[tuple[Any, int]] = [
        (dict(dataset_meta=dict(classes=classes)), 0),
        (dict(dataset_meta=dict(classes=swapped)), 1),
        (dict(CLASSES=swapped), 1),  # of a version before 3
        (dict(dataset_meta=dict(classes=None)), 0),
    ]
    for meta, warned in metas:
        torch.save(dict(state_dict=weights_of(runs, 'gfl', 5), meta=meta), path)
        cfg = runs.config('gfl', fixed(path), iters=1)
        text = runs.log(runs.train(cfg))
        assert text.count('its classes are not those of this run') == warned
        there, here = ([*each[1:4]] for each in (swapped, classes))
        order = f'From number 1 on they are {there} there, and {here} here.'
        assert text.count(order) == warned


def test_parts_of_a_data_set_may_say_different_things(
    runs: Runs, tmp_path: Path
) -> None:
    torch.save(weights_of(runs, 'gfl', 5), tmp_path / 'teacher.pth')
    cfg = runs.config('gfl', fixed(tmp_path / 'teacher.pth'), iters=1)
    part = cfg.train_dataloader.dataset
    own = part.get('metainfo', {})
    parts = [dict(part, metainfo=dict(own, of=name)) for name in ('one', 'other')]
    cfg.train_dataloader.dataset = dict(type='mmdet.ConcatDataset', datasets=parts)
    runner = runs.train(cfg)
    assert isinstance(runner.train_dataloader.dataset.metainfo, list)
    assert runs.hook(runner).distiller.computed == 1


def test_leaves_the_student_as_it_was(runs: Runs, tmp_path: Path) -> None:
    torch.save(weights_of(runs, 'mask_rcnn', 5), tmp_path / 'teacher.pth')
    plain = runs.config('mask_rcnn', iters=1)
    taught = runs.config('mask_rcnn', fixed(tmp_path / 'teacher.pth'), iters=1)
    models = [runs.train(cfg).model for cfg in (plain, taught)]
    held = [runs.checkpoint(cfg) for cfg in (plain, taught)]
    assert list(held[1]) == [*held[0], 'mmselfdistill']
    assert list(held[1]['state_dict']) == list(held[0]['state_dict'])
    groups = [[len(g['params']) for g in h['optimizer']['param_groups']] for h in held]
    assert groups[1] == groups[0]
    for (name, stock), (_, ours) in zip(*(m.named_modules() for m in models)):
        assert vars(ours).keys() == vars(stock).keys(), name
        assert not ours._forward_hooks and not ours._forward_pre_hooks, name
