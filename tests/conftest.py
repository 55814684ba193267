from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from small_data import data

from mmselfdistill.families import Plan, find_plan

__all__ = ['data']

# Several threads on busy cores wait for each other longer than they compute.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collections of each data set.

    MMEngine makes one whenever it builds a data set, and it would look at all of it.
    """
    gc.freeze()


@pytest.fixture(scope='module')
def gfl() -> Any:
    """GFL: a dense detector with features, logits and boxes."""
    root = Path(__file__).parents[1]
    cfg = Config.fromfile(root / 'configs/digits/gfl_r18_fpn_50e_digits.py')
    return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def plan(gfl: Any) -> Plan:
    """Return what GFL's family says of it."""
    return find_plan(gfl)
