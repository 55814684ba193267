from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import detection_batch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from setting import Small

from mmselfdistill.core.teacher import still


@pytest.fixture(scope='module')
def built() -> Small:
    """A small GFL: three levels, ten classes."""
    path = Path(__file__).parents[2] / 'configs/digits/gfl_r18_fpn_50e_digits.py'
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    still(model)
    return model, model.data_preprocessor(detection_batch(), True)
