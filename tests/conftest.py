from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmselfdistill.sites import Family, find_family

# Several threads on busy cores wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(scope='module')
def family() -> Family:
    """GFL: a dense detector with features, logits and boxes."""
    root = Path(__file__).parents[1]
    cfg = Config.fromfile(root / 'configs/digits/gfl_r18_fpn_50e_digits.py')
    return find_family(MODELS.build(cfg.model))
