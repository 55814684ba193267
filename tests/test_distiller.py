"""Identity, gradients and a still teacher, on real models with random weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import get_installed_path
from torch import nn

from mmselfdistill.distiller import Distiller
from mmselfdistill.sites import find_family
from mmselfdistill.teacher import make_teacher, still, tensors_of
from mmselfdistill.terms import resolve_terms

CONFIGS = {
    'retinanet/retinanet_r50_fpn_1x_coco.py': {'features', 'logits', 'boxes'},
    'gfl/gfl_r50_fpn_1x_coco.py': {'features', 'logits', 'boxes'},
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': {'features', 'logits', 'boxes'},
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {'features', 'logits', 'boxes', 'masks'},
}


def without_pretrained(cfg: Any) -> Any:
    if isinstance(cfg, dict):
        return type(cfg)(
            (key, None if key == 'init_cfg' else without_pretrained(value))
            for key, value in cfg.items()
        )
    return cfg


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    path = f'{get_installed_path("mmdet")}/.mim/configs/{name}'
    model = MODELS.build(without_pretrained(Config.fromfile(path).model))
    still(model)
    inputs = demo_mm_inputs(2, [[3, 64, 64]] * 2, with_mask=True)
    return model, model.data_preprocessor(inputs, True)


@pytest.mark.parametrize('name', CONFIGS)
def test_terms_are_zero_at_equal_weights_and_teach_the_student_alone(name: str) -> None:
    model, data = build(name)
    family = find_family(model)
    distiller = Distiller(family, resolve_terms(family, None, None))
    distiller.teacher = make_teacher(model)
    distiller.attach()
    before = {key: t.clone() for key, t in tensors_of(distiller.teacher).items()}
    losses = model(**copy.deepcopy(data), mode='loss')
    ours = {key[8:]: loss for key, loss in losses.items() if key[:8] == 'loss_sd_'}
    assert ours.keys() == CONFIGS[name]
    assert [float(loss) for loss in ours.values()] == [0.0] * len(ours)

    with torch.no_grad():
        for parameter in distiller.teacher.parameters():
            parameter.mul_(1.1)
    changed = model(**copy.deepcopy(data), mode='loss')
    for term in ours:
        assert float(changed[f'loss_sd_{term}'].detach()) != 0.0
        weight = model.backbone.layer4[0].conv1.weight
        (gradient,) = torch.autograd.grad(
            changed[f'loss_sd_{term}'], weight, retain_graph=True
        )
        assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in distiller.teacher.parameters())
    for key, buffer in distiller.teacher.named_buffers():
        assert torch.equal(buffer, before[key])

    distiller.detach()
    plain = model(**copy.deepcopy(data), mode='loss')
    assert not [key for key in plain if 'loss_sd' in key]
    assert 'extract_feat' not in vars(model)
