"""The teacher's copy, and how it is moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from helpers import assert_bitwise, values_of
from mmcv.ops.sync_bn import SyncBatchNorm
from torch import Tensor, nn

from mmselfdistill.core.pairing import Pairing
from mmselfdistill.core.teacher import (
    Average,
    broadcast_from_rank_0,
    copy_into,
    cost_of,
    make_teacher,
    tensors_of,
)


class Student(nn.Module):
    """Parameters, statistics, a counter, a constant and an unsaved buffer."""

    hidden: Tensor
    flags: Tensor

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


AVERAGED = {
    'conv.weight',
    'conv.bias',
    'norm.weight',
    'norm.bias',
    'norm.running_mean',
    'norm.running_var',
}


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
        Average(teacher, student).update(momentum)
        history.append({name: t.double() for name, t in values_of(student).items()})
    # theta_n = m^n theta_0 + sum_i (1 - m) m^(n - i) theta_i
    shares = [momentum**4] + [(1 - momentum) * momentum ** (4 - i) for i in range(1, 5)]
    assert sum(shares) == pytest.approx(1)
    found = values_of(teacher)
    for name in AVERAGED:
        expected = sum(share * past[name] for share, past in zip(shares, history))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(
            found[name].double(), expected, rtol=1e-6, atol=1e-7, msg=name
        )
    # all else is the student's latest: its average means nothing
    assert found.keys() - AVERAGED == {'norm.num_batches_tracked', 'hidden', 'flags'}
    assert int(found['norm.num_batches_tracked']) == 4
    for name in found.keys() - AVERAGED:
        assert torch.equal(found[name], student.get_buffer(name))


@pytest.mark.parametrize('momentum', [0.0, 1.0])
def test_the_ends_of_momentum_are_exact(student: Student, momentum: float) -> None:
    teacher = make_teacher(student)
    before = values_of(teacher)
    train_a_step(student)
    Average(teacher, student).update(momentum)
    expected = values_of(student) if momentum == 0.0 else before
    for name in AVERAGED:
        assert torch.equal(tensors_of(teacher)[name], expected[name]), name


def test_averaging_is_in_place_and_keeps_the_student_out(student: Student) -> None:
    teacher = make_teacher(student)
    addresses = {name: t.data_ptr() for name, t in tensors_of(teacher).items()}
    train_a_step(student)
    before = values_of(student)
    Average(teacher, student).update(0.5)
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


def test_a_mask_of_infinities_is_copied() -> None:
    student = nn.Linear(2, 2)
    mask = torch.full((3, 3), float('-inf')).triu(1)
    student.register_buffer('mask', mask)
    teacher = make_teacher(student)
    Average(teacher, student).update(0.5)
    assert torch.equal(teacher.get_buffer('mask'), mask)


def test_complex_parameters_are_averaged() -> None:
    student = nn.ParameterList([torch.tensor([1 + 2j, 3 - 1j])])
    teacher = make_teacher(student)
    with torch.no_grad():
        student[0].copy_(torch.tensor([5 + 6j, -1 - 5j]))
    Average(teacher, student).update(0.75)
    assert torch.equal(tensors_of(teacher)['0'], torch.tensor([2 + 3j, 2 - 2j]))
    copy_into(teacher, student)
    assert_bitwise(teacher, values_of(student))


def test_an_average_takes_few_operations(student: Student) -> None:
    many = nn.Sequential(*[nn.Sequential(student.conv, Student()) for _ in range(9)])
    teacher = make_teacher(many)
    average = Average(teacher, many)
    with torch.profiler.profile() as profile:
        average.update(0.9)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts['aten::_foreach_lerp_'] == 1
    # counters, constants and flags: one operation for each type
    assert counts['aten::_foreach_copy_'] == 3


def test_parts_on_two_devices_are_averaged() -> None:
    student = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, device='meta'))
    teacher = make_teacher(student)
    assert [str(p.device) for p in teacher.parameters()] == ['cpu'] * 2 + ['meta'] * 2
    student.get_buffer('0.running_mean').fill_(4)
    Average(teacher, student).update(0.75)
    assert torch.equal(teacher.get_buffer('0.running_mean'), torch.ones(2))
    assert teacher.get_buffer('1.running_mean').device.type == 'meta'


def test_a_tied_parameter_is_moved_once() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    student[1].weight = student[0].weight
    teacher = make_teacher(student)
    assert teacher[1].weight is teacher[0].weight
    before = teacher[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1)
    Average(teacher, student).update(0.5)
    torch.testing.assert_close(teacher[0].weight, before + 0.5)


def average_into(teacher: nn.Module, student: nn.Module) -> None:
    Average(teacher, student).update(0.5)


@pytest.mark.parametrize('move', [copy_into, average_into])
def test_a_parameter_that_is_tied_no_more_is_moved_alone(move: Any) -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    student[1].weight = student[0].weight
    teacher = make_teacher(student)
    before = teacher[0].weight.clone()
    student[1].weight = nn.Parameter(torch.full((2, 2), 9.0))
    for _ in range(2):
        move(teacher, student)
    assert torch.equal(teacher[0].weight, before)
    share = 1 if move is copy_into else 0.75
    expected = before + share * (9 - before)
    torch.testing.assert_close(teacher[1].weight, expected)
    assert not teacher[1].weight.requires_grad


def test_a_norm_of_another_precision_is_averaged() -> None:
    student = nn.BatchNorm1d(2)
    teacher = make_teacher(student)
    student.double().running_mean.fill_(4)
    Average(teacher, student).update(0.75)
    assert torch.equal(teacher.get_buffer('running_mean'), torch.ones(2))


@pytest.mark.parametrize('move', [copy_into, average_into])
def test_a_part_of_another_precision_is_moved_with_the_others(move: Any) -> None:
    student = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    teacher = make_teacher(student)
    student[1].double()
    with torch.no_grad():
        for weight, value in zip(student.parameters(), (5.0, 9.0)):
            weight.fill_(value)
        for weight in teacher.parameters():
            weight.fill_(1.0)
    move(teacher, student)
    expected = (5.0, 9.0) if move is copy_into else (3.0, 5.0)
    for weight, value in zip(teacher.parameters(), expected):
        assert torch.equal(weight, torch.full((2, 2), value))


class Queue(nn.Module):
    """No norm, though it has a buffer of such a name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer('running_mean', torch.zeros(2))


def test_a_buffer_is_averaged_of_norms_alone() -> None:
    student = Queue()
    teacher = make_teacher(student)
    with torch.no_grad():
        student.weight.fill_(4)
        student.get_buffer('running_mean').fill_(4)
    Average(teacher, student).update(0.75)
    assert torch.equal(teacher.weight, torch.ones(2))
    assert torch.equal(teacher.get_buffer('running_mean'), torch.full((2,), 4.0))


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_a_frozen_scripted_part_is_copied_and_averaged() -> None:
    student = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2).requires_grad_(False)))
    teacher = make_teacher(student)
    average = Average(teacher, student)
    student.get_buffer('0.running_mean').fill_(4)
    student.get_buffer('0.num_batches_tracked').fill_(3)
    average.update(0.5)
    assert int(teacher.get_buffer('0.num_batches_tracked')) == 3
    copy_into(teacher, student)
    assert_bitwise(teacher, values_of(student))


class Late(nn.Module):
    """Makes its constants at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.grid: Any = None
        self.register_buffer('offset', None)

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            del self.grid
            self.register_buffer('grid', x.detach().clone(), persistent=False)
            self.offset = x.sum(0).detach()
        y: Tensor = self.layer(x) + self.grid + self.offset
        return y


def copied(teacher: nn.Module, student: nn.Module) -> Callable[[], None]:
    return lambda: copy_into(teacher, student)


def averaged(teacher: nn.Module, student: nn.Module) -> Callable[[], None]:
    average = Average(teacher, student)
    return lambda: average.update(0.5)


MOVES = pytest.mark.parametrize('move', [copied, averaged])


@MOVES
def test_buffers_that_come_later_are_registered(move: Any) -> None:
    student = nn.Sequential(Late())
    teacher = make_teacher(student)
    step = move(teacher, student)
    step()
    student(torch.rand(3, 2))
    step()
    assert_bitwise(teacher, values_of(student))
    assert teacher.state_dict().keys() == student.state_dict().keys()
    assert '0.offset' in teacher.state_dict() and '0.grid' not in teacher.state_dict()
    # another tensor in the same place is seen
    student[0].grid = torch.rand(3, 2)
    step()
    assert torch.equal(teacher.get_buffer('0.grid'), student[0].grid)
    assert teacher.get_buffer('0.grid') is not student[0].grid


@MOVES
def test_a_module_that_takes_anothers_place_is_seen(move: Any) -> None:
    student = nn.Sequential(nn.BatchNorm1d(2))
    teacher = make_teacher(student)
    step = move(teacher, student)
    student[0] = nn.BatchNorm1d(2)
    student[0].num_batches_tracked.fill_(7)
    step()
    assert int(teacher.get_buffer('0.num_batches_tracked')) == 7


def of_data(student: Any) -> None:
    student.conv.weight.data = student.conv.weight.data + 1


def of_a_parameter(student: Any) -> None:
    student.conv.bias = nn.Parameter(student.conv.bias.detach() + 1)


def of_a_buffer(student: Any) -> None:
    student.norm.running_mean = student.norm.running_mean + 1


@pytest.mark.parametrize('exchange', [of_data, of_a_parameter, of_a_buffer])
def test_a_tensor_that_is_exchanged_between_updates_is_seen(
    student: Student, exchange: Callable[[Any], None]
) -> None:
    teacher, once = make_teacher(student), make_teacher(student)
    average = Average(teacher, student)
    for _ in range(3):
        average.update(0.75)
        Average(once, student).update(0.75)
        exchange(student)
    average.update(0.75)
    Average(once, student).update(0.75)
    assert_bitwise(teacher, values_of(once))


def test_pairs_are_found_again_only_after_an_exchange(student: Student) -> None:
    pairing = Pairing(make_teacher(student), student)
    averaged, copied = pairing.pairs()
    assert all(a is b for a, b in zip(pairing.pairs(), (averaged, copied)))
    student.flags = student.flags.clone()
    again = pairing.pairs()[1]
    assert again is not copied
    assert [t.data_ptr() for _, t in again].count(student.flags.data_ptr()) == 1


@MOVES
def test_parameters_that_one_lacks_are_named(move: Any) -> None:
    student = nn.Sequential(nn.Linear(2, 2, bias=False))
    teacher = make_teacher(student)
    step = move(teacher, student)
    before = values_of(teacher)
    student[0].bias = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r'teacher lacks: 0\.bias$'):
        step()
    student.append(nn.BatchNorm1d(1))
    with pytest.raises(
        ValueError, match=r'lacks: 0\.bias, 1\.weight, .*1\.running_var'
    ):
        step()
    assert_bitwise(teacher, before)
    bare = nn.Sequential(nn.Identity())
    with pytest.raises(ValueError, match=r'student lacks: 0\.weight$'):
        move(teacher, bare)()


@MOVES
def test_other_shapes_are_named_before_anything_is_written(
    move: Any, student: Student
) -> None:
    teacher = make_teacher(student)
    step = move(teacher, student)
    before = values_of(teacher)
    train_a_step(student)
    student.flags = torch.zeros(3, dtype=torch.bool)
    student.norm = nn.BatchNorm2d(5)
    with pytest.raises(ValueError, match=r'flags: .*norm\.bias: \(4,\) and \(5,\)'):
        step()
    assert_bitwise(teacher, before)


@MOVES
def test_a_buffer_that_is_not_saved_follows_the_students_size(
    move: Any, student: Student
) -> None:
    teacher = make_teacher(student)
    step = move(teacher, student)
    student.hidden = torch.rand(3, 5)
    step()
    assert torch.equal(teacher.get_buffer('hidden'), student.hidden)
    assert teacher.get_buffer('hidden').data_ptr() != student.hidden.data_ptr()
    assert teacher.state_dict().keys() == student.state_dict().keys()


def rank(number: int, store: str) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=number, world_size=2
    )
    kinds = [torch.float32, torch.float64, torch.bool, torch.int64, torch.complex64]
    given = [torch.arange(6).view(2, 3).add(number).to(kind) for kind in kinds]
    tensors = [*given, torch.zeros(0), torch.tensor(float(number))]
    broadcast_from_rank_0(tensors)
    for tensor, kind in zip(tensors, kinds):
        assert torch.equal(tensor, torch.arange(6).view(2, 3).to(kind))
    assert float(tensors[-1]) == 0
    torch.manual_seed(0)
    student = Student()
    teacher = make_teacher(student)
    average = Average(teacher, student)
    for step in (lambda: copy_into(teacher, student), lambda: average.update(0.5)):
        # each rank's images have another size
        student.hidden = torch.full((2 + number,), float(number))
        student.norm.running_mean.fill_(number)
        step()
        assert torch.equal(teacher.get_buffer('hidden'), student.hidden)
        assert torch.equal(teacher.norm.running_mean, torch.zeros(4))
    # in PyTorch 2.1, to destroy the group may wait for ever
    torch.distributed.barrier()
    os._exit(0)


def test_tensors_of_all_kinds_are_sent(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path / 'store'),), nprocs=2)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield torch.distributed.new_group([0])
    torch.distributed.destroy_process_group()


def test_mmcv_s_own_sync_bn_is_copied_and_stilled(group: Any) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4, group=group))
    teacher = make_teacher(student)
    assert teacher[1].group is group
    images = torch.randn(2, 3, 5, 5)
    student.eval()
    assert torch.equal(teacher(images), student(images))
    assert torch.equal(teacher[1].running_mean, torch.zeros(4))
    student[1].running_mean.fill_(1)
    Average(teacher, student).update(0.5)
    assert torch.equal(teacher[1].running_mean, torch.full((4,), 0.5))


def test_pytorch_s_sync_bn_with_a_group_is_copied(group: Any) -> None:
    student = nn.Sequential(nn.SyncBatchNorm(4, process_group=group))
    teacher = make_teacher(student)
    assert teacher[0].process_group is group
    assert not teacher[0].training
    assert_bitwise(teacher, values_of(student))


def test_a_module_that_is_called_group_is_copied() -> None:
    student: Any = nn.Sequential()
    student.group = nn.Linear(2, 2)
    teacher: Any = make_teacher(student)
    before = values_of(teacher)
    with torch.no_grad():
        student.group.weight.add_(1)
    assert teacher.group is not student.group
    assert_bitwise(teacher, before)
