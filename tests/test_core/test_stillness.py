"""What is random or statistical in training is still in a teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Iterable

import numpy as np
import pytest
import torch
from helpers import Scale, assert_bitwise, values_of
from mmcv.cnn.bricks import Dropout, DropPath
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers import DropBlock
from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.models.decode_heads.ema_head import EMAModule
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from toys import Toy, distilled, step

from mmselfdistill.core.teacher import make_teacher, still

CONFIGS = Path(__file__).parents[2] / 'configs' / 'digits'


NORMS: list[dict[str, Any]] = [
    dict(type='BN1d', num_features=8),
    dict(type='BN', num_features=8),
    dict(type='BN3d', num_features=8),
    dict(type='SyncBN', num_features=8),
    dict(type='IN', num_features=8, track_running_stats=True),
]


@pytest.mark.parametrize('cfg', NORMS, ids=lambda cfg: cfg['type'])
def test_norms_use_their_statistics_and_keep_them(cfg: dict[str, Any]) -> None:
    norm: nn.Module = MODELS.build(cfg)
    dims = {'BN1d': 1, 'BN3d': 3}.get(cfg['type'], 2)
    torch.manual_seed(0)
    mean, variance = torch.rand(8), torch.rand(8) + 0.5
    norm.get_buffer('running_mean').copy_(mean)
    norm.get_buffer('running_var').copy_(variance)
    teacher = make_teacher(nn.Sequential(norm))
    before = values_of(teacher)
    x = torch.randn(3, 8, *[2] * dims)
    with torch.no_grad():
        output = teacher(x)
    column = (8,) + (1,) * dims
    expected = (x - mean.view(column)) / (variance.view(column) + 1e-5).sqrt()
    torch.testing.assert_close(output, expected)
    if cfg['type'] == 'IN':
        # PyTorch 2.1 writes back the mean of one copy an image
        torch.testing.assert_close(values_of(teacher), before, rtol=1e-6, atol=0)
    else:
        assert_bitwise(teacher, before)


def test_an_instance_norm_without_statistics_goes_on_as_in_training() -> None:
    norm = nn.InstanceNorm2d(4)
    x = torch.randn(2, 4, 5, 5)
    expected = norm(x)
    still(norm)
    assert torch.equal(norm(x), expected)


DROPOUTS: list[nn.Module] = [
    nn.Dropout(0.5),
    nn.Dropout2d(0.5),
    nn.AlphaDropout(0.5),
    nn.Dropout(0.5, inplace=True),
    Dropout(0.5),
    DropPath(0.5),
    DropBlock(0.5, block_size=3, warmup_iters=0),
]


@pytest.mark.parametrize('module', DROPOUTS, ids=lambda m: type(m).__name__)
def test_dropouts_of_every_kind_let_all_through(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 4, 8, 8) + 1
    module.train()
    assert not torch.equal(module(x.clone()), x)
    teacher = make_teacher(nn.Sequential(module))
    stream = torch.get_rng_state()
    assert torch.equal(teacher(x.clone()), x)
    assert torch.equal(torch.get_rng_state(), stream)


def both_attentions() -> list[nn.Module]:
    ours = nn.MultiheadAttention(8, 2, dropout=0.5)
    mmcvs = MultiheadAttention(8, 2, attn_drop=0.5, proj_drop=0.5)
    return [ours, mmcvs]


@pytest.mark.parametrize('module', both_attentions(), ids=['torch', 'mmcv'])
def test_attention_keeps_no_dropout_rate(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 2, 8)

    def attend(model: nn.Module) -> Tensor:
        output: Any = model(x, x, x)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    module.train()
    assert not torch.equal(attend(module), attend(module))
    teacher = make_teacher(module)
    assert torch.equal(attend(teacher), attend(teacher))
    # the mean of the random outputs, not one of them scaled
    torch.testing.assert_close(attend(teacher), attend(copy.deepcopy(module).eval()))
    # in training mode, and the student's own rate is untouched
    assert teacher.training
    assert not torch.equal(attend(module), attend(module))


class ReadsTheRate(nn.Module):
    """As timm's attention: the rate of a dropout that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.attn_drop.p if self.training else 0.0
        return nn.functional.dropout(x, rate, self.training)


class StochasticDepth(nn.Module):
    """As torchvision's: named after no dropout."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.empty(len(x), 1).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p) if self.training else x


def test_stochastic_depth_lets_all_through() -> None:
    model = nn.Sequential(StochasticDepth(0.5, 'row')).train()
    still(model)
    assert torch.equal(model(torch.ones(50, 3)), torch.ones(50, 3))


def test_a_rate_that_is_only_read_is_zero() -> None:
    model, x = ReadsTheRate(), torch.rand(64)
    assert torch.equal(make_teacher(model)(x), x)
    assert model.attn_drop.p == 0.5


def test_functional_dropout_of_vision_language_fusion_is_off() -> None:
    torch.manual_seed(0)
    module = BiMultiHeadAttention(8, 8, embed_dim=8, num_heads=2, dropout=0.5)
    vision, language = torch.rand(1, 6, 8), torch.rand(1, 3, 8)
    module.train()
    assert not torch.equal(module(vision, language)[0], module(vision, language)[0])
    teacher = make_teacher(module)
    expected = module.eval()(vision, language)
    for ours, theirs in zip(teacher(vision, language), expected):
        assert torch.equal(ours, theirs)


def test_a_random_slope_is_the_mean() -> None:
    x = -torch.ones(64)
    torch.testing.assert_close(make_teacher(nn.RReLU(0.1, 0.3))(x), 0.2 * x)


class Reader(nn.Module):
    """Reads rates that it holds as numbers."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, 0.5)


RATES = [
    'dropout',
    'dropout_p',
    'dropout_rate',
    'dropout_ratio',
    'drop_rate',
    'drop_prob',
    'drop_path_rate',
    'attn_drop',
    'attn_drop_rate',
    'proj_drop',
    'attention_dropout',
    'attention_probs_dropout_prob',
    'activation_dropout',
    'hidden_dropout_prob',
    'classifier_dropout',
    'layerdrop',
    'attn_pdrop',
]
OTHERS = [
    'backdrop_scale',
    'drop_threshold',
    'nms_backdrop_iou_thr',
    'memo_backdrop_frames',
    'drop_last',
    'dropped',
    'teardrop',
    'p',
]


def test_numbers_are_rates_by_their_exact_name() -> None:
    teacher = make_teacher(Reader([*RATES, *OTHERS]))
    assert {name: getattr(teacher, name) for name in RATES} == dict.fromkeys(RATES, 0.0)
    assert {name: getattr(teacher, name) for name in OTHERS} == dict.fromkeys(
        OTHERS, 0.5
    )


@pytest.mark.parametrize(
    'rate', [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)], ids=str
)
def test_a_rate_may_be_a_number_of_any_library(rate: Any) -> None:
    student = Toy()
    student.bbox_head = Dropping(rate)
    with distilled(student, {'bbox_head': 7.0}) as distiller:
        for _ in range(3):
            # half of the student's are doubled, half are 0
            teacher: Any = distiller.teacher
            assert step(distiller)['features'] == 0
            assert teacher.bbox_head.drop_rate == 0
            assert torch.equal(
                teacher.bbox_head(torch.ones(64)), torch.full((64,), 7.0)
            )
    assert student.bbox_head.drop_rate == rate


class Dropping(Scale):
    def __init__(self, rate: Any) -> None:
        super().__init__(3.0)
        self.drop_rate = rate

    def forward(self, x: Tensor) -> Tensor:
        dropped = nn.functional.dropout(x, float(self.drop_rate), self.training)
        return super().forward(dropped)


@pytest.mark.parametrize(
    'wrap',
    [spectral_norm, parametrizations.spectral_norm],
    ids=['hook', 'parametrization'],
)
def test_a_spectral_norm_makes_no_iteration(wrap: Any) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(wrap(nn.Linear(4, 3)), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()  # its vectors were of other weights
    x = torch.randn(2, 4)
    teacher = make_teacher(student)
    before = values_of(teacher)
    outputs = [teacher(x) for _ in range(3)]
    assert_bitwise(teacher, before)
    assert len([name for name in before if name.endswith(('_u', '_v'))]) == 2
    assert teacher.training
    student.eval()
    assert all(torch.equal(output, student(x)) for output in outputs)
    student.train()(x)  # which does make one
    assert not torch.equal(student(x), outputs[0])


def test_expectation_maximisation_keeps_its_bases() -> None:
    torch.manual_seed(0)
    module = EMAModule(channels=4, num_bases=3, num_stages=2, momentum=0.1)
    x = torch.rand(2, 4, 3, 3)
    bases = module.bases.clone()
    teacher = make_teacher(module)
    module(x)
    assert not torch.equal(module.bases, bases)
    teacher(x)
    assert torch.equal(teacher.get_buffer('bases'), bases)


def digits_model(stem: str) -> Any:
    cfg = Config.fromfile(CONFIGS / f'{stem}.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize(
    'stem',
    [
        'segformer_mit-b0_1xb8-1500_digits-64x64',
        'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64',
        'mask-rcnn_r18_fpn_50e_digits',
    ],
)
def test_real_models_become_deterministic_and_stay_in_training(stem: str) -> None:
    teacher: Any = make_teacher(digits_model(stem))
    before = values_of(teacher)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first = teacher.extract_feat(x)
        second = teacher.extract_feat(x)
        if hasattr(teacher, 'decode_head'):
            first, second = [*first], [*second]
            first.append(teacher.decode_head(first))
            second.append(teacher.decode_head(second))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert_bitwise(teacher, before)
    in_eval = [type(m).__name__ for m in teacher.modules() if not m.training]
    assert in_eval
    assert all('Norm' in name or 'Drop' in name for name in in_eval)
    assert not any('LayerNorm' in name or 'GroupNorm' in name for name in in_eval)
