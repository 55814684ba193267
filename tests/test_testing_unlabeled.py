"""The check of images without labels, on small real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_bitwise, detection_batch, values_of
from mmdet.models.data_preprocessors import TrackDataPreprocessor
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmselfdistill.core.unlabeled import check_takes_images
from mmselfdistill.testing.unlabeled import Same, check_unlabeled

ROOT = Path(__file__).parents[1]


def model_of(name: str) -> Any:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model: Any = MODELS.build(Config.fromfile(ROOT / f'configs/digits/{name}.py').model)
    model.init_weights()
    return model


def check(model: Any) -> dict[str, Any]:
    raw, data = detection_batch(), detection_batch()
    return check_unlabeled(model, raw, model.data_preprocessor(data, True))


def test_a_model_that_learns_without_labels() -> None:
    model = model_of('faster-rcnn_r18_fpn_50e_digits')
    before = values_of(model)
    found = check(model)
    assert {*found} == {'features', 'logits', 'boxes', 'proposals', 'proposal_boxes'}
    # levels of 16, 8, 4 and 2 cells a side, two anchors each, of two images
    assert found['proposals'].tensors == ['1360x1']
    for each in found.values():
        assert each.frozen == 0 < each.apart
    assert_bitwise(model, before)


def test_a_model_that_does_not_run_without_labels() -> None:
    model = model_of('retinanet_r18_fpn_50e_digits')

    def forward(inputs: Any, data_samples: Any) -> Any:
        return data_samples[0].gt_instances.labels[0]

    model._forward = forward
    message = r'^unlabeled: RetinaNet does not run on images without labels: IndexError'
    with pytest.raises(ValueError, match=message):
        check(model)


def test_what_a_model_needs_besides_an_image_is_named() -> None:
    model = model_of('retinanet_r18_fpn_50e_digits')
    preprocessor = model.data_preprocessor
    model.data_preprocessor = TrackDataPreprocessor()
    with pytest.raises(ValueError, match=r'^unlabeled: RetinaNet .* it needs videos;'):
        check_takes_images(model)
    model.data_preprocessor = preprocessor
    check_takes_images(model)
    model.language_model = torch.nn.Identity()
    with pytest.raises(ValueError, match='it needs a text with each image; remove'):
        check_takes_images(model)


def test_what_moves_the_students_own_losses_is_named() -> None:
    class Counter(torch.nn.Module):
        """Counts in evaluation mode too, in which nothing is put back."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer('runs', torch.zeros(()))

        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    class Counted(type(model_of('retinanet_r18_fpn_50e_digits'))):  # type: ignore[misc]
        """Its loss depends on how often it has run."""

        def loss(self, inputs: Any, data_samples: Any) -> Any:
            losses = super().loss(inputs, data_samples)
            return dict(losses, loss_runs=self.counter.runs.clone())

        def _forward(self, inputs: Any, data_samples: Any = None) -> Any:
            self.counter.runs += 1
            return super()._forward(inputs, data_samples)

    model = model_of('retinanet_r18_fpn_50e_digits')
    model.counter = Counter().train()
    model.__class__ = Counted
    with pytest.raises(RuntimeError, match=r'images without labels move counter\.runs'):
        check(model)


def test_what_they_leave_behind_for_the_next_iteration_is_named() -> None:
    class Counting(type(model_of('retinanet_r18_fpn_50e_digits'))):  # type: ignore[misc]
        """Its loss depends on how many images without labels it has seen."""

        seen = 0

        def loss(self, inputs: Any, data_samples: Any) -> Any:
            losses = super().loss(inputs, data_samples)
            return dict(losses, loss_seen=torch.tensor(float(self.seen)))

        def _forward(self, inputs: Any, data_samples: Any = None) -> Any:
            self.seen += 1
            return super()._forward(inputs, data_samples)

    model = model_of('retinanet_r18_fpn_50e_digits')
    model.__class__ = Counting
    with pytest.raises(RuntimeError, match='change the losses of those with labels'):
        check(model)


def test_a_batch_comes_again_and_again() -> None:
    batches = Same(dict(inputs=[torch.zeros(2)]))
    first, second = next(batches), next(batches)
    first['inputs'][0].fill_(1)
    assert float(second['inputs'][0].sum()) == 0
    assert batches.drawn == 2
