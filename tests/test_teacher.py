"""The teacher's copy, its stillness, and how it is moved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn.bricks import Dropout, DropPath
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops.sync_bn import SyncBatchNorm
from mmdet.models.layers import DropBlock
from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.models.decode_heads.ema_head import EMAModule
from torch import Tensor, nn

from mmselfdistill.teacher import (
    average_into,
    copy_into,
    cost_of,
    lend,
    make_teacher,
    still,
    tensors_of,
)

CONFIGS = Path(__file__).parents[1] / 'configs' / 'digits'


class Student(nn.Module):
    """Parameters, statistics, a counter, a constant and an unsaved buffer."""

    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout2d(0.5)
        self.register_buffer('hidden', torch.rand(2), persistent=False)
        self.register_buffer('flags', torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.norm(self.conv(x)))
        return y


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student()


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}


def assert_bitwise(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = tensors_of(model)
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert different == []


def train_a_step(model: Student) -> None:
    x = torch.randn(2, 3, 6, 6)
    model.train()
    model(x).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
        model.hidden.mul_(0.5)
        flags: Tensor = model.get_buffer('flags')
        flags.logical_not_()


def test_the_teacher_is_a_separate_copy_without_gradient(student: Student) -> None:
    train_a_step(student)
    before = values_of(student)
    teacher = make_teacher(student)
    assert_bitwise(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())
    shared = {t.data_ptr() for t in tensors_of(student).values()}
    assert not shared & {t.data_ptr() for t in tensors_of(teacher).values()}
    # the student goes on as it was
    assert all(p.requires_grad and p.grad is not None for p in student.parameters())
    assert student.norm.training and student.dropout.training

    assert not any(p.requires_grad for p in teacher.parameters())
    teacher(torch.randn(2, 3, 6, 6))
    assert_bitwise(teacher, before)


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
    stilled = [type(m).__name__ for m in teacher.modules() if not m.training]
    assert stilled
    assert all('Norm' in name or 'Drop' in name for name in stilled)
    assert not any('LayerNorm' in name or 'GroupNorm' in name for name in stilled)


def test_copying_is_bitwise_for_all_parameters_and_buffers(student: Student) -> None:
    teacher = make_teacher(student)
    for _ in range(2):
        train_a_step(student)
    assert not torch.equal(teacher.get_buffer('hidden'), student.hidden)
    copy_into(teacher, student)
    assert_bitwise(teacher, values_of(student))
    assert int(teacher.get_buffer('norm.num_batches_tracked')) == 2
    # a copy, not a reference: the next step of the student does not move it
    copied = values_of(teacher)
    train_a_step(student)
    assert_bitwise(teacher, copied)


@pytest.mark.parametrize('momentum', [0.0, 0.9, 1.0])
def test_average_over_steps_is_the_weighted_sum_of_students(
    student: Student, momentum: float
) -> None:
    teacher = make_teacher(student)
    history = [{name: t.double() for name, t in values_of(student).items()}]
    for _ in range(4):
        train_a_step(student)
        average_into(teacher, student, momentum)
        history.append({name: t.double() for name, t in values_of(student).items()})
    # theta_n = m^n theta_0 + sum_i (1 - m) m^(n - i) theta_i
    shares = [momentum**4] + [(1 - momentum) * momentum ** (4 - i) for i in range(1, 5)]
    assert sum(shares) == pytest.approx(1)
    found = values_of(teacher)
    floating = {name for name, t in found.items() if t.is_floating_point()}
    assert floating == {
        'conv.weight',
        'conv.bias',
        'norm.weight',
        'norm.bias',
        'norm.running_mean',
        'norm.running_var',
        'hidden',
    }
    for name in floating:
        expected = sum(share * past[name] for share, past in zip(shares, history))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(
            found[name].double(), expected, rtol=1e-6, atol=1e-7, msg=name
        )
    # counters and flags are the student's latest: their average means nothing
    assert int(found['norm.num_batches_tracked']) == 4
    assert torch.equal(found['flags'], student.get_buffer('flags'))


@pytest.mark.parametrize('momentum', [0.0, 1.0])
def test_the_ends_of_momentum_are_exact(student: Student, momentum: float) -> None:
    teacher = make_teacher(student)
    before = values_of(teacher)
    train_a_step(student)
    average_into(teacher, student, momentum)
    expected = values_of(student) if momentum == 0.0 else before
    for name, tensor in tensors_of(teacher).items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name


def test_averaging_is_in_place_and_keeps_the_student_out(student: Student) -> None:
    teacher = make_teacher(student)
    addresses = {name: t.data_ptr() for name, t in tensors_of(teacher).items()}
    train_a_step(student)
    before = values_of(student)
    average_into(teacher, student, 0.5)
    copy_into(teacher, student)
    assert {name: t.data_ptr() for name, t in tensors_of(teacher).items()} == addresses
    assert_bitwise(student, before)
    assert all(p.grad is None for p in teacher.parameters())


def test_cost_counts_parameters_and_the_bytes_of_buffers_too(student: Student) -> None:
    # conv 3*4*9 + 4, norm 4 + 4; buffers: mean and variance, hidden, 1 int64, 2 bools
    parameters = 108 + 4 + 8
    parameter_bytes = 4 * parameters
    size = parameter_bytes + 4 * (8 + 2) + 8 + 2
    assert cost_of(student) == (parameters, size / 2**20)
    assert cost_of(student.half())[1] == (2 * (parameters + 10) + 8 + 2) / 2**20


def test_mmcv_s_own_sync_bn_is_copied_and_stilled(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        student = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4))
        teacher = make_teacher(student)
        assert teacher[1].group is student[1].group
        images = torch.randn(2, 3, 5, 5)
        student.eval()
        assert torch.equal(teacher(images), student(images))
        assert torch.equal(teacher[1].running_mean, torch.zeros(4))
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_are_lent_and_returned() -> None:
    student, teacher = (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in '12')
    own = teacher[1].weight
    # of a whole module, and one parameter of another
    with lend(student, teacher, ['1', '0.bias']):
        assert teacher[1].weight is student[1].weight
        assert teacher[0].bias is student[0].bias
        assert teacher[0].weight is not student[0].weight
    assert teacher[1].weight is own
    with pytest.raises(KeyError), lend(student, teacher, ['1']):
        raise KeyError
    assert teacher[1].weight is own
    assert teacher[0].bias is not student[0].bias
