"""Small images of noise in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope


def write(path: Path, height: int, width: int, channels: int = 3) -> Path:
    """Write an image whose noise depends on its name."""
    draw = np.random.default_rng(list(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    values = draw.integers(0, 256, (height, width, channels), np.uint8)
    assert cv2.imwrite(str(path), values)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of seven images."""
    for i in range(7):
        write(tmp_path / f'{i}.png', 24, 32)
    return tmp_path


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Return a function that writes an image."""
    return write


@pytest.fixture(autouse=True)
def detection() -> None:
    """Look names up in MMDetection."""
    from mmdet.utils import register_all_modules

    register_all_modules(False)
    init_default_scope('mmdet')
