"""Small real models, and one iteration of them as sites read it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmselfdistill.replay import record, replay
from mmselfdistill.sites import Replayed, find_family
from mmselfdistill.teacher import make_teacher, still

CONFIGS = Path(__file__).parents[2] / 'configs' / 'digits'


def build_digits(stem: str, **changes: Any) -> Any:
    """Build a digits config's model; changes are dotted keys with __ for a dot."""
    cfg = Config.fromfile(CONFIGS / f'{stem}.py')
    dotted = {key.replace('__', '.'): value for key, value in changes.items()}
    cfg.merge_from_dict({f'model.{key}': value for key, value in dotted.items()})
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    still(model)
    return model


class Iteration:
    """A student's loss on a batch, and what a teacher of other weights makes of it."""

    def __init__(self, model: Any, data: dict[str, Any] | None = None) -> None:
        torch.manual_seed(1)
        self.model = model
        self.family = find_family(model)
        self.teacher: Any = make_teacher(model)
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        self.data = data or batch_for(model)
        seams = [*self.family.seams(), *self.family.observed()]
        samples = self.data['data_samples']
        with record(model, seams) as calls:
            model.loss(self.data['inputs'], copy.deepcopy(samples))
        made = replay(self.teacher, calls, seams, self.family.observed())
        self.replayed = Replayed(list(zip(calls, made)), samples)

    def read(self, site: str) -> Any:
        """Return the pairs of a site."""
        return self.family.readers()[site](self.replayed)


def batch_for(model: Any) -> dict[str, Any]:
    """Return two images of 64x64 with the labels that the model needs."""
    if hasattr(model, 'decode_head'):
        batch = segmentation_batch()
    else:
        batch = demo_mm_inputs(
            2, [[3, 64, 64]] * 2, num_items=[3, 2], num_classes=10, with_mask=True
        )
    data: dict[str, Any] = model.data_preprocessor(batch, True)
    return data


def segmentation_batch() -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    labels = torch.randint(0, 11, (2, 1, 64, 64))
    labels[torch.rand(labels.shape) < 0.3] = 255
    samples = [
        SegDataSample(
            metainfo=dict(img_shape=(64, 64)), gt_sem_seg=PixelData(data=each)
        )
        for each in labels
    ]
    return dict(inputs=list(torch.rand(2, 3, 64, 64) * 255), data_samples=samples)


@pytest.fixture(scope='session')
def digits() -> Callable[..., Any]:
    return build_digits


@pytest.fixture(scope='session')
def iterate() -> Callable[..., Iteration]:
    return Iteration
