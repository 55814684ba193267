"""Identity, gradients and a still teacher, on the stock models of configs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import added, assert_bitwise, detection_batch, disturb, values_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.keys import is_ours
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.testing import check_identity
from mmselfdistill.testing.models import prepared
from mmselfdistill.wrapping import resolve
from mmselfdistill.zoo import zoo_folder

DENSE = {'features', 'logits', 'boxes'}


CONFIGS = {
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': DENSE,
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py': DENSE,
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': DENSE,
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {*DENSE, 'masks'},
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': {*DENSE, 'masks'},
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py': {
        'features',
        'logits',
    },
    'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py': {
        'features',
        'logits',
    },
}


# PyTorch multiplies a strided sequence by a weight in one product when the weight
# requires a gradient, and image by image when it does not: the rounding differs
ROUNDING = {'segformer': dict(features=1e-12, logits=2e-8)}


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build a stock model as its config says, and a batch of two images of 64x64."""
    scope, _, config = name.partition('::')
    init_default_scope(scope)
    torch.manual_seed(0)
    root = zoo_folder(scope)
    # few RoIs, and no weights to download; what is left is the stock model
    cfg = prepared(Config.fromfile(str(root / config)).model, scope)
    if scope == 'mmseg':
        cfg.data_preprocessor.size = (64, 64)
    model = MODELS.build(cfg)
    still(model)
    inputs = detection_batch() if scope == 'mmdet' else segmentation_batch()
    return model, model.data_preprocessor(inputs, True)


def segmentation_batch(classes: int = 19) -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(
            metainfo=dict(img_shape=(64, 64)),
            gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, 64, 64))),
        )
        for _ in range(2)
    ]
    return dict(inputs=list(torch.rand(2, 3, 64, 64) * 255), data_samples=samples)


@pytest.mark.parametrize('name', CONFIGS)
def test_terms_are_zero_at_equal_weights_and_teach_the_student_alone(name: str) -> None:
    model, data = build(name)
    report = check_identity(model, data)
    assert report.problems == []
    assert report.terms.keys() == CONFIGS[name]
    bound = ROUNDING.get(name[7:].split('/')[0], {})
    for term, check in report.terms.items():
        assert check.equal <= bound.get(term, 0.0)
        # where both sides use the same kernels even attention is exact
        assert check.frozen == 0.0
        assert check.apart > 1e-6
        assert check.backbone > 0


@pytest.mark.parametrize('name', CONFIGS)
def test_every_term_reaches_the_first_weight_and_leaves_nothing_behind(
    name: str,
) -> None:
    model, data = build(name)
    distiller = build_distiller(model)
    distiller.teacher = make_teacher(model)
    disturb(distiller.teacher)
    before = values_of(distiller.teacher)
    distiller.attach()
    weight = next(p for p in model.parameters() if p.requires_grad)
    changed = model(**copy.deepcopy(data), mode='loss')
    assert added(changed).keys() == CONFIGS[name]
    for loss in added(changed).values():
        assert float(loss.detach()) > 1e-6
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert_bitwise(distiller.teacher, before)

    distiller.detach()
    plain = model(**copy.deepcopy(data), mode='loss')
    assert plain.keys() == {key for key in changed if not is_ours(key)}
    # what is added of each term: its share, its value and its weight
    assert len(changed) - len(plain) == 3 * len(CONFIGS[name])
    for seam in distiller.labeled.plan.seams:
        owner, method = resolve(model, seam.path)
        assert method not in vars(owner)
    assert 'forward' not in vars(model)
