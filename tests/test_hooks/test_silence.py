"""With every weight at 0 a run is the stock run, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

DETECTORS = ('retinanet', 'gfl', 'faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn')
SEGMENTORS = ('deeplabv3plus', 'segformer')
STEPS = 3


def zero_weights(name: str) -> dict[str, Any]:
    """Return every default term of a model, at weight 0."""
    boxes = ['boxes'] if name in DETECTORS else []
    masks = ['masks'] if 'mask' in name else []
    return {term: dict(weight=0) for term in ('features', 'logits', *boxes, *masks)}


def end(runs: Runs, name: str, hook: dict[str, Any] | None) -> dict[str, Any]:
    """Return all that a run of a few steps leaves behind."""
    runner = runs.train(runs.config(name, hook, iters=STEPS))
    assert runner.iter == STEPS
    return dict(
        model=runs.state(runner.model),
        optimizer=runner.optim_wrapper.state_dict(),
        torch=torch.get_rng_state(),
        numpy=[str(part) for part in np.random.get_state()],
        python=random.getstate(),
    )


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_zero_weights_leave_the_stock_run(name: str, runs: Runs) -> None:
    stock = end(runs, name, None)
    whole = dict(type='mmselfdistill.EMATeacherHook', loss_weight=0, schedule='linear')
    assert runs.differences(stock, end(runs, name, whole)) == []
    # from its second iteration on, this run has a teacher
    each = dict(
        type='mmselfdistill.GenerationHook',
        interval=1,
        by_epoch=False,
        terms=zero_weights(name),
    )
    assert runs.differences(stock, end(runs, name, each)) == []


def test_fixed_teacher_at_zero_weight_is_not_run(runs: Runs, tmp_path: Path) -> None:
    stock = end(runs, 'gfl', None)
    path = tmp_path / 'teacher.pth'
    torch.save(stock['model'], path)
    hook = dict(type='mmselfdistill.SelfDistillHook', teacher=str(path))
    called: list[int] = []

    def before(runner: Runner) -> None:
        if runner.iter == 0:
            backbone = runs.hook(runner).distiller.teacher.backbone
            backbone.register_forward_hook(lambda *_: called.append(runner.iter))

    for silent, iterations in (
        (dict(loss_weight=0), []),
        (dict(terms=zero_weights('gfl')), []),
        # in the first iteration it is tried
        (dict(schedule=dict(begin=0.5)), [0, 2]),
    ):
        called.clear()
        runner = runs.train(runs.config('gfl', {**hook, **silent}, iters=3), before)
        assert called == iterations
        same = runs.differences(stock['model'], runs.state(runner.model)) == []
        assert same == (iterations == [])


@pytest.mark.parametrize('name', ['retinanet', 'gfl', *SEGMENTORS])
def test_teaching_moves_weights_but_no_random_stream(name: str, runs: Runs) -> None:
    # these models draw the same number of times whatever their weights are
    stock = end(runs, name, None)
    hook = dict(type='mmselfdistill.EMATeacherHook', schedule='linear')
    taught = end(runs, name, hook)
    for stream in ('torch', 'numpy', 'python'):
        assert runs.differences(stock[stream], taught[stream]) == []
    moved = runs.differences(stock['model'], taught['model'])
    assert len(moved) > len(stock['model']) / 2
