"""The cells of docs/tour.ipynb run in their order, in a shorter run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from mmdet.visualization import DetLocalVisualizer

NOTEBOOK = Path(__file__).parents[1] / 'docs/tour.ipynb'
LENGTH = 'SCENES, EPOCHS = 240, 12'


@pytest.fixture(scope='module')
def names() -> dict[str, Any]:
    """Return what the cells have defined."""
    matplotlib.use('Agg')
    cells = json.loads(NOTEBOOK.read_text())['cells']
    texts = [''.join(x['source']) for x in cells if x['cell_type'] == 'code']
    assert LENGTH in texts[0]
    texts[0] = texts[0].replace(LENGTH, 'SCENES, EPOCHS = 32, 5')
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(NOTEBOOK.parent)
        # it is one for a process, and writes to the folder of the first run
        DetLocalVisualizer._instance_dict.clear()
        for text in texts:
            exec(text, names)
    return names


def test_the_terms_follow_the_schedule_that_is_drawn(names: dict[str, Any]) -> None:
    assert len(names['steps']) == 10
    # the ramp from 20 % on is 0 at its own beginning; the log rounds to 4 digits
    weights = [step['sd_boxes_weight'] for step in names['steps']]
    steps = np.arange(10) / 10
    expected = 0.25 * np.clip((steps - 0.2) / 0.2, 0, 1)
    assert weights == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_checkpoint_has_two_models(names: dict[str, Any]) -> None:
    student, teacher = names['weights'].values()
    assert student.keys() == teacher.keys()
    key = 'bbox_head.retina_cls.weight'
    assert not torch.equal(student[key], teacher[key])
    maps = names['shown']
    assert maps['student'].shape == maps['teacher'].shape == (4, 16, 16)
    assert not torch.equal(maps['student'], maps['teacher'])
