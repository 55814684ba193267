"""What the check of a model says: of a real one, and of toys that are broken."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_bitwise, detection_batch, values_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmselfdistill.testing import check_identity

ROOT = Path(__file__).parents[1]


class Toy(nn.Module):
    """Features, an adapter, logits of them, and a head that nothing compares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 3)
        self.adapter = nn.Conv2d(8, 8, 1)
        self.bbox_head = nn.Conv2d(8, 4, 1)
        self.mask_head = nn.Conv2d(8, 4, 1)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        return self.backbone(inputs)

    def between(self, x: Tensor) -> Tensor:
        return self.adapter(x)

    def forward(self, inputs: Tensor, data_samples: Any, mode: str) -> Any:
        x = self.extract_feat(inputs)
        loss_mask = self.mask_head(x).square().mean()
        logits = self.bbox_head(self.between(x))
        return dict(loss_cls=logits.square().mean(), loss_mask=loss_mask)


class Doubled(Toy):
    def between(self, x: Tensor) -> Tensor:
        return self.adapter(x) * 2


class Random(Toy):
    """Its features are scaled by a number of a generator that no replay knows."""

    stream = random.Random(0)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        x = self.backbone(inputs)
        return x + self.stream.random() * x.roll(1, 2)


class Drawn(Toy):
    """The same, with PyTorch's."""

    def extract_feat(self, inputs: Tensor) -> Tensor:
        x = self.backbone(inputs)
        return x + torch.rand(()) * x.roll(1, 2)


class DrawnOnTheHost(Toy):
    """Its images are scaled by numbers of NumPy's generator, and of Python's."""

    def forward(self, inputs: Tensor, data_samples: Any, mode: str) -> Any:
        scale = 1 + np.random.rand() + random.random()
        return super().forward(inputs * scale, data_samples, mode)


class Counting(Toy):
    """A weight that trains counts the calls; a buffer would be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Parameter(torch.zeros(()))

    def extract_feat(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.calls.add_(1)
        return super().extract_feat(inputs)


class Frozen(Toy):
    """No gradient reaches its backbone, though it is to be trained."""

    def extract_feat(self, inputs: Tensor) -> Tensor:
        return super().extract_feat(inputs).detach()


TERMS = dict(logits=dict(type='FeatureMSELoss', site='bbox_head'))


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return dict(inputs=torch.rand(2, 3, 8, 8, generator=generator), data_samples=None)


def test_a_true_model_has_no_problem() -> None:
    model = Toy()
    before = values_of(model)
    report = check_identity(model, batch(), terms=TERMS)
    assert report.problems == []
    assert report.family == 'any model with a backbone'
    assert report.found == ['adapter.forward']
    assert report.silent == ['mask_head']
    assert report.skipped.keys() == {'bbox_head', 'mask_head'}
    assert report.terms.keys() == {'features', 'logits'}
    for check in report.terms.values():
        assert (check.equal, check.frozen, check.problem()) == (0, 0, '')
        assert check.apart > 1e-3
        assert 0 < check.backbone <= check.gradient
    assert report.terms['features'].tensors == ['2x8x6x6']
    assert report.terms['logits'].tensors == ['2x4x6x6']
    # nothing of it stays
    assert_bitwise(model, before)
    assert 'forward' not in vars(model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_settings_are_those_of_the_distiller() -> None:
    model = Doubled()
    report = check_identity(model, batch(), terms=TERMS, seams=['between'])
    assert (report.problems, report.found) == ([], [])
    only_features = dict(features=dict(type='FeatureMSELoss'))
    report = check_identity(model, batch(), terms=only_features, seams=['between'])
    assert report.problems == []
    assert report.silent == ['adapter', 'bbox_head', 'mask_head']


def test_terms_are_checked_whenever_they_count() -> None:
    late = dict(schedule=dict(begin=0.5, warmup=0.1))
    terms = dict(logits=dict(TERMS['logits'], **late), features=dict(weight=0))
    report = check_identity(Toy(), batch(), terms=terms)
    assert report.problems == []
    assert report.terms.keys() == {'logits'}
    assert report.skipped['features'] == 'its weight is 0'
    plain = check_identity(Toy(), batch(), terms=dict(TERMS, features=None))
    assert report.terms['logits'].tensors == plain.terms['logits'].tensors
    assert report.silent == plain.silent


def test_the_weight_of_all_terms_is_one_of_each() -> None:
    report = check_identity(Toy(), batch(), terms=TERMS, loss_weight=0.5)
    assert report.problems == []
    assert report.terms.keys() == {'features', 'logits'}
    report = check_identity(Toy(), batch(), terms=TERMS, loss_weight=0.0)
    assert (report.problems, report.terms) == ([], {})
    assert report.skipped == dict.fromkeys(('features', 'logits'), 'its weight is 0')


def test_a_broken_flow_is_an_error() -> None:
    model = Doubled()
    message = r'bbox_head\.forward: its argument \w+ \(2, 8, 6, 6\) depends on weights'
    with pytest.raises(RuntimeError, match=message):
        check_identity(model, batch(), terms=TERMS)
    assert 'forward' not in vars(model)


def test_what_is_random_in_another_way_is_a_problem() -> None:
    report = check_identity(Random(), batch(), terms=TERMS)
    assert report.problems[0] == 'distillation changes the losses of the model itself'
    assert [problem.split(':')[0] for problem in report.problems[1:]] == [
        'features',
        'logits',
    ]
    for problem, check in zip(report.problems[1:], report.terms.values()):
        assert 'it is not 0 where it has to be' in problem
        assert check.equal > 1e-3
    # and with the generators that a replay sets there is none
    for model in (Drawn(), DrawnOnTheHost()):
        assert check_identity(model, batch(), terms=TERMS).problems == []


def test_a_teacher_that_changes_is_a_problem() -> None:
    report = check_identity(Counting(), batch(), terms=TERMS)
    assert report.problems == ['a replay changed calls of the teacher']


def test_a_gradient_that_reaches_no_backbone_is_a_problem() -> None:
    terms = dict(TERMS, features=None)
    report = check_identity(Frozen(), batch(), terms=terms)
    assert report.problems == ['no term has a gradient at the backbone']
    frozen = Frozen()
    frozen.backbone.requires_grad_(False)
    assert check_identity(frozen, batch(), terms=terms).problems == []


class Nothing(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        return 0 * (student - teacher).sum()


def test_a_term_that_nothing_moves_is_an_error() -> None:
    terms = dict(features=None, logits=dict(type=Nothing, site='bbox_head'))
    message = r"^terms\.logits: Nothing is 0 at the site 'bbox_head', whatever the stud"
    with pytest.raises(ValueError, match=message):
        check_identity(Toy(), batch(), terms=terms)


def test_retinanet_is_distilled_correctly() -> None:
    cfg = Config.fromfile(ROOT / 'configs/digits/retinanet_r18_fpn_50e_digits.py')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    data = model.data_preprocessor(detection_batch(), True)
    before = values_of(model)
    report = check_identity(model, data)
    assert report.problems == []
    assert report.family == 'single-stage detector'
    assert report.terms.keys() == {'features', 'logits', 'boxes'}
    assert (report.silent, report.skipped, report.found) == ([], {}, [])
    for check in report.terms.values():
        assert (check.equal, check.frozen) == (0, 0)
        assert check.apart > 1e-6
        assert 0 < check.backbone < check.gradient < 1e4
    assert_bitwise(model, before)
    # with the features alone the head moves nothing
    alone = dict(logits=None, boxes=None)
    report = check_identity(model, data, terms=alone)
    assert (report.problems, report.silent) == ([], ['bbox_head'])
