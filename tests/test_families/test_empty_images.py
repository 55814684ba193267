"""Batches of which images have no object, or none that an anchor would find."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import detection_batch
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.testing.losses import loss_of, own_losses, terms_of

# fewer channels than the zoo's, where nothing but time depends on them
SMALL = dict(fc_out_channels=64, conv_out_channels=32, num_convs=1, num=8)
NARROW = dict(in_channels=64, out_channels=64)
QUERIES = dict(**NARROW, proposal_feature_channel=64, conv_out_channels=64)
QUERIES.update(num_proposals=10, feedforward_channels=64)
CELLS = dict(stacked_convs=1, feat_channels=64)
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    'mask r-cnn': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', SMALL),
    'cascade': ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', SMALL),
    'queryinst': ('queryinst/queryinst_r50_fpn_1x_coco.py', QUERIES),
    'condinst': ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', {}),
    'boxinst': ('boxinst/boxinst_r50_fpn_ms-90k_coco.py', {}),
    'yolact': ('yolact/yolact_r50_1xb8-55e_coco.py', {}),
    'rtmdet': ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', {}),
    'solo': ('solo/solo_r50_fpn_1x_coco.py', CELLS),
    'decoupled': ('solo/decoupled-solo-light_r50_fpn_3x_coco.py', CELLS),
    'solov2': (
        'solov2/solov2-light_r18_fpn_ms-3x_coco.py',
        {**NARROW, **CELLS},
    ),
    'mask2former': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        dict(num_layers=2),
    ),
}
# PyTorch rounds attention in another way where a weight requires a gradient
ROUNDED = ('queryinst', 'mask2former')
# how many objects the two images have, and their side in pixels if it is the same
BATCHES: dict[str, tuple[tuple[int, int], int | None]] = {
    'some and none': ((3, 0), None),
    'none and some': ((0, 2), None),
    'none and none': ((0, 0), None),
    'objects of a pixel': ((3, 2), 1),
}


@pytest.fixture(scope='module', params=MODELS)
def trained(
    request: pytest.FixtureRequest, zoo: Callable[..., Any]
) -> tuple[str, Distiller]:
    """Return a distiller whose first iteration had objects in both images."""
    MMLogger.get_instance('zoo', log_level='ERROR')
    name, few = MODELS[request.param]
    model, _ = zoo(f'mmdet::{name}', **few)
    distiller = attached(model, make_teacher(model))
    loss_of(model, batch_of(model, (3, 2)))
    distiller.detach()
    return request.param, distiller


def attached(model: Any, teacher: Any) -> Distiller:
    distiller = build_distiller(model)
    distiller.teacher = teacher
    distiller.attach()
    return distiller


def batch_of(
    model: Any, counts: tuple[int, int], side: int | None = None
) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = detection_batch()
    for sample, count in zip(inputs['data_samples'], counts):
        sample.gt_instances = sample.gt_instances[:count]
        if side is not None:
            sample.gt_instances = squares(sample.gt_instances.labels, side)
    data: dict[str, Any] = model.data_preprocessor(inputs, True)
    return data


def squares(labels: Any, side: int) -> InstanceData:
    corners = [5 + 20 * i for i in range(len(labels))]
    masks = torch.zeros(len(labels), 64, 64, dtype=torch.uint8)
    for mask, start in zip(masks, corners):
        mask[start : start + side, start : start + side] = 1
    boxes = [[start, start, start + side, start + side] for start in corners]
    return InstanceData(
        labels=labels,
        bboxes=torch.tensor(boxes).float(),
        masks=BitmapMasks(masks.numpy(), 64, 64),
    )


def stock_step(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the losses without distillation, or skip what they cannot train on."""
    try:
        losses = loss_of(model, batch)
        model.parse_losses(losses)[0].backward()
    except Exception as error:
        pytest.skip(f'the stock model fails: {type(error).__name__}: {error}')
    model.zero_grad()
    return losses


@pytest.mark.parametrize('name', BATCHES)
def test_terms_are_zero_at_equal_weights_and_all_there(
    trained: tuple[str, Distiller], name: str
) -> None:
    key, later = trained
    model: Any = later.student
    batch = batch_of(model, *BATCHES[name])
    stock = stock_step(model, batch)
    later.attach()
    seen = [loss_of(model, batch)]
    later.detach()
    # and as the very first batch
    first = attached(model, later.teacher)
    seen.append(loss_of(model, batch))
    first.detach()
    for losses in seen:
        check(key, first, losses, stock)
    model.parse_losses(seen[-1])[0].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(each.isfinite().all() for each in gradients)
    model.zero_grad()


def check(
    key: str, distiller: Distiller, losses: dict[str, Any], stock: dict[str, Any]
) -> None:
    names = {term.name for term in distiller.terms}
    added = {
        name
        for term in names
        for name in (f'loss_sd_{term}', f'sd_{term}', f'sd_{term}_weight')
    }
    assert losses.keys() == {*stock, *added}
    assert {'features', 'masks'} <= names
    own, plain = own_losses(losses), own_losses(stock)
    assert len(own) == len(plain) and all(map(torch.equal, own, plain))
    for name, value in terms_of(losses).items():
        assert value.dim() == 0
        assert abs(float(value.detach())) <= (1e-6 if key in ROUNDED else 0.0), name
        assert float(losses[f'sd_{name}_weight']) > 0
