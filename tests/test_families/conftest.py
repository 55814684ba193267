"""Small real models, and one iteration of them as sites read it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from helpers import detection_batch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.comparison import Batch
from mmselfdistill.core.flow import Flow
from mmselfdistill.core.pairs import Pair, pair
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.families.plan import Call, Site
from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.models import FEW
from mmselfdistill.zoo import read_config

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
    """A student's loss on a batch, and what a teacher of other weights makes of it.

    Without labels: its predictions.
    """

    def __init__(
        self,
        model: Any,
        data: dict[str, Any] | None = None,
        labels: bool = True,
        confidence: float | None = None,
    ) -> None:
        self.labels = labels
        torch.manual_seed(1)
        self.model = model
        distiller = build_distiller(model)
        self.teacher: Any = make_teacher(model)
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        self.data = data or batch_for(model)
        inputs, samples = self.data['inputs'], self.data['data_samples']
        run = distiller.labeled.plan.run or partial(type(model).forward, mode='tensor')
        flow = Flow(model, distiller.labeled.plan)
        with flow.watched():
            if labels:
                model.loss(inputs, copy.deepcopy(samples))
            else:
                run(model, inputs, without_labels(samples, inputs))
        distiller.labeled.plan, calls = flow.completed()
        self.plan = distiller.labeled.plan
        metas = () if labels else [each.metainfo for each in samples]
        batch = Batch(samples if labels else None, confidence=confidence, metas=metas)
        sides = distiller.labeled.sides(self.teacher, distiller.terms, calls, batch)
        self.student_side, self.teacher_side = sides

    def site(self, name: str) -> Site:
        """Return a site of the plan."""
        site = self.plan.site(name)
        assert site is not None
        return site.on(self.labels)

    def read(self, name: str) -> list[Pair]:
        """Return the pairs of a site."""
        return pair(self.site(name), self.student_side, self.teacher_side)

    def of(self, path: str) -> list[tuple[Call, Call]]:
        """Return the calls of a seam: the student's, with the teacher's."""
        return list(zip(self.student_side.of(path), self.teacher_side.of(path)))


def build_zoo(key: str, **few: int) -> tuple[Any, dict[str, Any]]:
    """Build a zoo's model with random weights, nothing random in it, and a batch."""
    model, batch = Builder(read_config(key, None), {**FEW, **few}).calibrated(64)
    still(model)
    return model, batch


def batch_for(model: Any) -> dict[str, Any]:
    """Return two images of 64x64 with the labels that the model needs."""
    segments = hasattr(model, 'decode_head')
    batch = segmentation_batch() if segments else detection_batch()
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
def zoo() -> Callable[..., tuple[Any, dict[str, Any]]]:
    return build_zoo


@pytest.fixture(scope='session')
def iterate() -> Callable[..., Iteration]:
    return Iteration
