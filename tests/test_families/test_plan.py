"""Which family a model is of, and sites that are paths of modules."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.pairs import pair
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import (
    FAMILIES,
    AnyModel,
    DenseDetector,
    Family,
    Plan,
    Segmentor,
    Side,
    TwoStageDetector,
    Unknown,
    find_plan,
    outputs_of,
)
from mmselfdistill.families.plan import Call
from mmselfdistill.wrapping import resolve

DENSE = {'features', 'logits', 'boxes'}
PIXELS = {'features', 'logits', 'pseudo_labels'}
RPN = {'proposals', 'proposal_boxes'}
FOUND: dict[str, tuple[type[Family], set[str]]] = {
    'retinanet_r18_fpn_50e_digits': (DenseDetector, DENSE),
    'gfl_r18_fpn_50e_digits': (DenseDetector, DENSE),
    'faster-rcnn_r18_fpn_50e_digits': (TwoStageDetector, DENSE | RPN),
    'mask-rcnn_r18_fpn_50e_digits': (TwoStageDetector, {*DENSE, 'masks', *RPN}),
    'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64': (Segmentor, PIXELS),
    'segformer_mit-b0_1xb8-1500_digits-64x64': (Segmentor, PIXELS),
}


@pytest.mark.parametrize('stem', FOUND)
def test_real_models_are_recognised_by_their_parts(
    stem: str, digits: Callable[..., Any]
) -> None:
    model = digits(stem)
    plan = find_plan(model)
    family, sites = FOUND[stem]
    assert plan.name == family.name
    assert [site.name for site in plan.sites] == [*default_terms(plan)]
    assert default_terms(plan).keys() == sites
    seams = [seam.path for seam in plan.seams]
    assert len(seams) == len({*seams})
    for path in seams:
        owner, name = resolve(model, path)
        assert callable(getattr(owner, name))
    for site in plan.sites:
        assert {*site.seams} <= {*seams}


class OnlyFeatures(nn.Module):
    """Has features, and no head that anyone knows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def extract_feat(self, x: Tensor) -> list[Tensor]:
        return [self.body(x)]


def test_any_model_with_features_offers_them() -> None:
    plan = find_plan(OnlyFeatures())
    assert plan.name == AnyModel.name
    assert [seam.path for seam in plan.seams] == ['extract_feat']
    assert [site.name for site in plan.sites] == [*default_terms(plan)] == ['features']


def test_a_family_of_the_users_own_comes_first(
    monkeypatch: pytest.MonkeyPatch, digits: Callable[..., Any]
) -> None:
    class Mine(Family):
        @staticmethod
        def matches(model: nn.Module) -> bool:
            return type(model).__name__ == 'RetinaNet'

        @classmethod
        def plan(cls, model: nn.Module) -> Plan:
            return Plan('mine')

    monkeypatch.setattr('mmselfdistill.families.FAMILIES', [Mine, *FAMILIES])
    assert find_plan(digits('retinanet_r18_fpn_50e_digits')).name == 'mine'
    assert find_plan(digits('gfl_r18_fpn_50e_digits')).name == DenseDetector.name


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


def returned(model: Any, paths: list[str], x: Tensor) -> dict[str, Tensor]:
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


def standard(x: Tensor, *dims: int) -> Tensor:
    spread = x.var(dims, unbiased=False, keepdim=True)
    return (x - x.mean(dims, keepdim=True)) / (spread + 1e-6).sqrt()


def uncorrelated(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return 1 minus the correlation of each channel of maps, on average."""
    sides = [standard(each, 0, 2, 3) for each in (ours, theirs)]
    return (sides[0] - sides[1]).square().mean() / 2


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the squared difference of rows, or maps, that are standardised."""
    dims = (2, 3) if ours.dim() == 4 else (1,)
    return (standard(ours, *dims) - standard(theirs, *dims)).square().mean()


def test_modules_of_an_unknown_model_are_sites_by_their_path() -> None:
    torch.manual_seed(0)
    model = Classifier()
    still(model)
    x = torch.rand(4, 3, 32, 32)
    distiller = distiller_of(model, TERMS)
    assert distiller.labeled.plan.name == Unknown.name
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
    ours, theirs = returned(model, paths, x), returned(teacher, paths, x)
    assert distiller.labeled.shapes == dict(
        deep=['4x32x2x2'], logits=['4x5'], within=['4x16']
    )
    expected = dict(
        deep=2 * uncorrelated(ours['encoder.layer3'], theirs['encoder.layer3']),
        logits=difference(ours['classifier'], theirs['classifier']),
        within=difference(ours['classifier.2'], theirs['classifier.2']),
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
    assert distiller.labeled.plan.name == TwoStageDetector.name
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
    values = [float(difference(s, t)) for s, t in zip(ours, theirs)]
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
    call = Call(f'{path}.forward', 0, (), {}, output=dict(a=sequence, b=other))
    side = Side(model, [call], [])
    pairs = pair(outputs_of(f'{path}.forward', path), side, side)
    # vectors and integers are no features
    assert [tuple(each.student.shape) for each in pairs] == [(14, 5), (2, 3, 4, 4)]
    assert torch.equal(pairs[0].student[7 + 3], sequence[1, 3])
    assert [each.kind for each in pairs] == ['', '']

    terms = dict(_delete_=True, block=dict(type='FeatureMSELoss', site=path))
    distiller = distiller_of(model, terms)
    model.loss = lambda inputs, samples: dict(loss=model.extract_feat(inputs)[0].sum())
    value = model(x, [], mode='loss')['loss_sd_block']
    # 16x16 tokens of 16 channels
    assert distiller.labeled.shapes == dict(block=['512x16'])
    assert abs(float(value.detach())) < 1e-12
