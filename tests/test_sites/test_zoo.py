"""A representative dozen of both zoos; `tools/zoo_sweep.py` tries all of them.

Each passes what the sweep asks: zero at equal weights, gradients, three steps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mmengine.logging import MMLogger

sys.path.append(str(Path(__file__).parents[2] / 'tools'))
from launching import zoo_folder
from zoo_check import check_config

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
}


@pytest.mark.parametrize('key', ZOO)
def test_a_family_of_the_zoo_trains(key: str) -> None:
    MMLogger.get_instance('zoo', log_level='ERROR')
    zoo, name = key.split('::')
    root = zoo_folder(zoo)
    record: dict[str, Any] = {}
    check_config(zoo, root, name, record.update)
    family, terms = ZOO[key]
    assert record['part'] == 'done'
    assert record['family'] == family
    assert set(record['terms']) == {'features', *terms.split()}
    for term in record['terms'].values():
        assert term['equal'] <= 1e-6 * term['apart']
        assert len(term['steps']) == 3
