"""Which family a model is of, and sites that are paths of modules."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.distiller import Distiller, build_distiller
from mmselfdistill.losses import feature_mse_loss, pkd_loss
from mmselfdistill.replay import Call
from mmselfdistill.sites import (
    FAMILIES,
    DenseDetector,
    Family,
    Replayed,
    Segmentor,
    TwoStageDetector,
    Unknown,
    find_family,
    module_reader,
)
from mmselfdistill.teacher import make_teacher, still

DENSE = {'features', 'logits', 'boxes'}
FOUND: dict[str, tuple[type[Family], set[str]]] = {
    'retinanet_r18_fpn_50e_digits': (DenseDetector, DENSE),
    'gfl_r18_fpn_50e_digits': (DenseDetector, DENSE),
    'faster-rcnn_r18_fpn_50e_digits': (TwoStageDetector, DENSE),
    'mask-rcnn_r18_fpn_50e_digits': (TwoStageDetector, {*DENSE, 'masks'}),
    'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64': (Segmentor, {'features', 'logits'}),
    'segformer_mit-b0_1xb8-1500_digits-64x64': (Segmentor, {'features', 'logits'}),
}


@pytest.mark.parametrize('stem', FOUND)
def test_real_models_are_recognised_by_their_parts(
    stem: str, digits: Callable[..., Any]
) -> None:
    family = find_family(digits(stem))
    kind, sites = FOUND[stem]
    assert type(family) is kind
    assert family.readers().keys() == family.default_terms().keys() == sites
    for path in [*family.seams(), *family.observed()]:
        owner, _, name = path.rpartition('.')
        assert callable(getattr(family.model.get_submodule(owner), name))


class OnlyFeatures(nn.Module):
    """Has features, and no head that anyone knows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def extract_feat(self, x: Tensor) -> list[Tensor]:
        return [self.body(x)]


def test_any_model_with_features_offers_them() -> None:
    family = find_family(OnlyFeatures())
    assert type(family) is Family
    assert family.seams() == ['extract_feat']
    assert family.readers().keys() == family.default_terms().keys() == {'features'}


def test_a_family_of_the_users_own_comes_first(
    monkeypatch: pytest.MonkeyPatch, digits: Callable[..., Any]
) -> None:
    class Mine(Family):
        @classmethod
        def matches(cls, model: nn.Module) -> bool:
            return type(model).__name__ == 'RetinaNet'

    monkeypatch.setattr('mmselfdistill.sites.FAMILIES', [Mine, *FAMILIES])
    assert type(find_family(digits('retinanet_r18_fpn_50e_digits'))) is Mine
    assert type(find_family(digits('gfl_r18_fpn_50e_digits'))) is DenseDetector


class Classifier(BaseModel):  # type: ignore[misc]
    """A real backbone in a model that no family covers."""

    def __init__(self) -> None:
        super().__init__()
        backbone = dict(
            type='mmdet.ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN')
        )
        self.encoder = MODELS.build(backbone)
        # a part's input must be what another part returned to be the teacher's
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 5)
        )

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        logits = self.classifier(self.encoder(inputs)[-1])
        if mode == 'tensor':
            return logits
        labels = torch.zeros(len(inputs), dtype=torch.long)
        return dict(loss_cls=nn.functional.cross_entropy(logits, labels))


TERMS: dict[str, Any] = dict(
    deep=dict(type='PKDLoss', site='encoder.layer3', weight=2.0),
    logits=dict(type='FeatureMSELoss', site='classifier'),
    within=dict(type='FeatureMSELoss', site='classifier.2'),
)


def distiller_of(model: nn.Module, terms: dict[str, Any]) -> Distiller:
    distiller = build_distiller(model, terms)
    distiller.teacher = make_teacher(model)
    distiller.attach()
    return distiller


def outputs_of(model: Any, paths: list[str], x: Tensor) -> dict[str, Tensor]:
    """Run a model as it is, and keep what some of its modules return."""
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: outputs.update({path: output})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return outputs


def test_modules_of_an_unknown_model_are_sites_by_their_path() -> None:
    torch.manual_seed(0)
    model = Classifier()
    still(model)
    x = torch.rand(4, 3, 32, 32)
    distiller = distiller_of(model, TERMS)
    assert type(distiller.family) is Unknown
    same = model(x, mode='loss')
    assert {key: float(same[f'loss_sd_{key}']) for key in TERMS} == dict(
        deep=0.0, logits=0.0, within=0.0
    )

    teacher = distiller.teacher
    assert teacher is not None
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    losses = model(x, mode='loss')
    distiller.detach()
    paths = [cfg['site'] for cfg in TERMS.values()]
    ours, theirs = outputs_of(model, paths, x), outputs_of(teacher, paths, x)
    assert distiller.shapes == dict(deep=['4x32x2x2'], logits=['4x5'], within=['4x16'])
    expected = dict(
        deep=2 * pkd_loss(ours['encoder.layer3'], theirs['encoder.layer3']),
        logits=feature_mse_loss(ours['classifier'], theirs['classifier']),
        within=feature_mse_loss(ours['classifier.2'], theirs['classifier.2']),
    )
    for key, value in expected.items():
        assert float(value) > 1e-4
        assert float(losses[f'loss_sd_{key}']) == pytest.approx(float(value), rel=1e-6)
    gradient = torch.autograd.grad(losses['loss_sd_deep'], model.encoder.conv1.weight)
    assert gradient[0].abs().sum() > 0


def test_modules_of_a_known_model_are_sites_too(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    """Within a seam, or between seams as the proposal network is."""
    model = digits('faster-rcnn_r18_fpn_50e_digits')
    data = iterate(model).data
    terms = dict(
        _delete_=True,
        layer=dict(type='PKDLoss', site='backbone.layer3.1'),
        proposals=dict(type='FeatureMSELoss', site='rpn_head'),
    )
    distiller = distiller_of(model, terms)
    assert type(distiller.family) is TwoStageDetector
    same = model(**data, mode='loss')
    assert float(same['loss_sd_layer']) == float(same['loss_sd_proposals']) == 0.0

    teacher: Any = distiller.teacher
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        losses = model(**data, mode='loss')
        distiller.detach()
        feats = [side.extract_feat(data['inputs']) for side in (model, teacher)]
        ours, theirs = (
            [tensor for kind in side.rpn_head(feat) for tensor in kind]
            for side, feat in zip((model, teacher), feats)
        )
    # scores and boxes of four levels
    values = [float(feature_mse_loss(s, t)) for s, t in zip(ours, theirs)]
    assert len(values) == 8
    expected = pytest.approx(sum(values) / 8, rel=1e-6)
    assert float(losses['loss_sd_proposals']) == expected
    assert float(losses['loss_sd_layer']) > 1e-4


def test_a_sequence_is_read_as_rows(digits: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = digits('segformer_mit-b0_1xb8-1500_digits-64x64')
    path = 'backbone.layers.0.1.0'
    x = torch.rand(2, 3, 64, 64)
    sequence = torch.rand(2, 7, 5)
    other = [torch.rand(3), torch.arange(6).reshape(2, 3), torch.rand(2, 3, 4, 4)]
    call = Call(f'{path}.forward', 0, (), {}, [], output=dict(a=sequence, b=other))
    pairs = module_reader(path)(Replayed([(call, call)], []))
    # vectors and integers are no features
    assert [tuple(pair.student.shape) for pair in pairs] == [(14, 5), (2, 3, 4, 4)]
    assert torch.equal(pairs[0].student[7 + 3], sequence[1, 3])

    terms = dict(_delete_=True, block=dict(type='FeatureMSELoss', site=path))
    distiller = distiller_of(model, terms)
    model.loss = lambda inputs, samples: dict(loss=model.extract_feat(inputs)[0].sum())
    value = model(x, [], mode='loss')['loss_sd_block']
    # 16x16 tokens of 16 channels
    assert distiller.shapes == dict(block=['512x16'])
    assert abs(float(value.detach())) < 1e-12
