"""A representative dozen of both zoos, narrowed; `make zoo` tries all of them whole.

Each passes what the sweep asks: zero at equal weights, gradients, three steps.
"""

from __future__ import annotations

from typing import Any, Callable, Tuple

import pytest
import torch
from helpers import added
from mmengine.logging import MMLogger
from torch import nn
from zoo.check import check_config

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.families import find_plan
from mmselfdistill.testing import check_identity
from mmselfdistill.testing.identity import disturb
from mmselfdistill.testing.losses import loss_of
from mmselfdistill.testing.models import FEW

Trained = Callable[[str], Tuple[Any, Any]]

AUXILIARY, PROPOSALS = ['auxiliary_head'], ['rpn_head']

# parts that are repeated, and widths: only time depends on them
SMALL = dict(num=8, max_per_img=8, num_convs=1, stacked_convs=1, num_classes=80)
SMALL.update(fc_out_channels=64, conv_out_channels=64, feedforward_channels=256)
# not of CondInst's mask head, whose weights another part computes
LAYERS = dict(num_layers=2)
TRANSFORMERS = ('query detector', 'mask classifier')
# config: its family, and its terms besides features
ZOO = {
    'mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py': (
        'single-stage detector',
        'logits boxes',
    ),
    'mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': (
        'single-stage detector',
        'logits boxes quality',
    ),
    'mmdet::tood/tood_r50_fpn_1x_coco.py': ('single-stage detector', 'logits boxes'),
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py': (
        'single-stage detector',
        'logits boxes',
    ),
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': (
        'single-stage detector',
        'logits boxes quality masks',
    ),
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': (
        'single-stage detector',
        'logits boxes masks',
    ),
    'mmdet::solo/decoupled-solo-light_r50_fpn_3x_coco.py': (
        'grid of masks',
        'logits masks',
    ),
    'mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py': (
        'two-stage detector',
        'logits boxes masks',
    ),
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': (
        'two-stage detector',
        'logits boxes masks semantic',
    ),
    'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py': (
        'query detector',
        'logits boxes',
    ),
    'mmdet::soft_teacher/'
    'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': (
        'two-stage detector in student',
        'logits boxes',
    ),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (
        'mask classifier',
        'logits masks',
    ),
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py': (
        'segmentor',
        'logits',
    ),
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py': (
        'segmentor',
        'logits',
    ),
}


@pytest.mark.parametrize('key', ZOO)
def test_a_family_of_the_zoo_trains(key: str) -> None:
    MMLogger.get_instance('zoo', log_level='ERROR')
    record: dict[str, Any] = {}
    family, terms = ZOO[key]
    layers = LAYERS if family in TRANSFORMERS else {}
    check_config(key, record.update, {**FEW, **SMALL, **layers})
    assert record['part'] == 'done'
    assert record['family'] == family
    assert set(record['terms']) == {'features', *terms.split()}
    for term in record['terms'].values():
        assert term['equal'] <= 1e-6 * term['apart']
        assert len(term['steps']) == 3


@pytest.fixture
def trained(zoo: Callable[..., Any]) -> Trained:
    def build(key: str) -> tuple[Any, Any]:
        """Return the distiller of a config, and a batch for its model."""
        model, batch = zoo(key)
        distiller = build_distiller(model)
        distiller.teacher = make_teacher(model)
        distiller.attach()
        return distiller, batch

    return build


def test_a_learned_scale_of_boxes_is_each_sides_own(trained: Trained) -> None:
    distiller, batch = trained('mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py')
    losses = added(loss_of(distiller.student, batch))
    assert [float(each) for each in losses.values()] == [0.0, 0.0, 0.0]
    with torch.no_grad():
        distiller.teacher.bbox_head.moment_transfer.add_(1.0)
    losses = added(loss_of(distiller.student, batch))
    assert losses['boxes'] > 1e-3
    assert losses['logits'] == losses['features'] == 0


def test_points_without_a_label_do_not_count(trained: Trained) -> None:
    key = 'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py'
    distiller, batch = trained(key)
    disturb(distiller.teacher)
    assert added(loss_of(distiller.student, batch))['logits'] > 1e-3
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data.fill_(255)
    assert added(loss_of(distiller.student, batch))['logits'] == 0


@pytest.mark.parametrize(
    ('key', 'parts'),
    [
        ('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', AUXILIARY),
        ('mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py', PROPOSALS),
    ],
)
def test_parts_that_move_no_term_are_found(
    key: str, parts: list[str], zoo: Callable[..., Any]
) -> None:
    report = check_identity(*zoo(key))
    assert report.problems == []
    assert report.silent == parts


def test_a_mask_head_of_another_kind_is_not_read_but_named(trained: Trained) -> None:
    class WithMasks(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            for name, part in model.named_children():
                setattr(self, name, part)
            self.mask_head = nn.Conv2d(8, 5, 1)
            self.extract_feat = model.extract_feat

    key = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    distiller, _ = trained(key)
    plan = find_plan(WithMasks(distiller.student))
    assert [site.name for site in plan.sites] == ['features', 'logits', 'boxes']
    assert plan.skipped == {'mask_head': 'it is not known how to read what it returns'}
