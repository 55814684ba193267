"""The teacher's copy, and how it is moved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_bitwise, values_of
from mmcv.ops.sync_bn import SyncBatchNorm
from torch import Tensor, nn

from mmselfdistill.teacher import (
    average_into,
    copy_into,
    cost_of,
    make_teacher,
    tensors_of,
)


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
