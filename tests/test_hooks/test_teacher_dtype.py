"""A teacher that runs under autocast while its student does not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.utils import digit_version

import mmselfdistill
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.testing.builder import Builder
from mmselfdistill.zoo import read_config

if TYPE_CHECKING:
    from mmengine.runner import Runner

    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', schedule='constant')


no_float16 = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='the autocast of this PyTorch has no float16 on a CPU',
)


@pytest.mark.parametrize(
    'name', [pytest.param('float16', marks=no_float16), 'bfloat16']
)
def test_its_calls_are_in_half_precision_and_its_weights_are_not(
    name: str, runs: Runs
) -> None:
    cfg = runs.config('retinanet', dict(EMA, teacher_dtype=name), iters=1)
    dtypes: list[Any] = []

    def before(runner: Runner) -> None:
        for model in (runner.model, runs.hook(runner).distiller.teacher):
            conv = model.bbox_head.retina_cls
            conv.register_forward_hook(lambda *_: dtypes.append(_[-1].dtype))

    runner = runs.train(cfg, before=before)
    levels, half = 3, getattr(torch, name)
    assert dtypes[:levels] == [torch.float32] * levels
    assert set(dtypes[levels:]) == {half}
    distiller = runs.hook(runner).distiller
    kinds = {each.dtype for each in distiller.teacher.parameters()}
    assert kinds == {torch.float32}


def test_terms_differ_by_rounding_alone(runs: Runs) -> None:
    found = []
    for more in ({}, dict(teacher_dtype='bfloat16')):
        runner = runs.train(runs.config('retinanet', {**EMA, **more}, iters=1))
        scalar = runner.message_hub.get_scalar('train/loss_sd_features')
        found.append(float(scalar.data[0][0]))
    # bfloat16 keeps 8 bits
    assert 0 < abs(found[1] / found[0] - 1) < 2.0**-6


def test_masks_that_a_site_computes_are_in_it_too() -> None:
    name = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco'
    builder = Builder(read_config(name, None))
    size = builder.first_size()
    model, batch = builder.calibrated(size)
    model.train()
    masks = []
    for dtype in (None, torch.bfloat16):
        distiller = build_distiller(model, schedule='constant', teacher_dtype=dtype)
        distiller.teacher = make_teacher(model)
        with torch.no_grad():
            for parameter in distiller.teacher.parameters():
                parameter.mul_(1.01)
        distiller.attach()
        losses = [model(**copy.deepcopy(batch), mode='loss') for _ in range(2)]
        masks.append([float(each['sd_masks']) for each in losses])
        distiller.detach()
    # bfloat16 keeps 8 bits
    assert masks[0][0] > 0 and masks[1] == pytest.approx(masks[0], rel=0.1)
    assert masks[1] != masks[0]


@pytest.mark.parametrize('wrong', ['float32', 16, torch.float16])
def test_other_dtypes_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r'^teacher_dtype: .*float16'):
        mmselfdistill.EMATeacherHook(teacher_dtype=wrong)


def test_an_operation_that_lacks_it_names_the_setting(runs: Runs) -> None:
    cfg = runs.config('faster_rcnn', dict(EMA, teacher_dtype='bfloat16'), iters=1)
    message = r"ROIAlign_forward.*\. It is called with teacher_dtype='bfloat16'"
    with pytest.raises(RuntimeError, match=message):
        runs.train(cfg)
