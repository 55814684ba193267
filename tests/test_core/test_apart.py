"""A teacher reaches nothing of its student, and making it leaves no trace."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import types
import weakref
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from helpers import Scale, values_of
from mmengine.logging import MMLogger
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mmselfdistill.core.teacher import make_teacher, prove_apart


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(Scale(2.0), Scale(3.0))


def enclosed(scale: Any) -> None:
    forward = scale.forward
    scale.forward = lambda x: forward(x) + 1


def enclosed_twice(scale: Any) -> None:
    enclosed(scale)
    enclosed(scale)


def in_defaults(scale: Any) -> None:
    def forward(x: Tensor, own: Any = scale, *, also: Any = (scale,)) -> Tensor:
        return Scale.forward(own, x) + also[0].factor

    scale.forward = forward


def in_a_partial(scale: Any) -> None:
    forward = scale.forward
    scale.forward = functools.partial(lambda add, x: forward(x) + add, 1)


def in_a_dict_and_a_tuple(scale: Any) -> None:
    forward = scale.forward
    scale.ways = {'all': [(lambda x: forward(x) + 1,)]}
    scale.forward = types.MethodType(lambda self, x: self.ways['all'][0][0](x), scale)


def as_a_method(scale: Any) -> None:
    forward = scale.forward
    scale.forward = types.MethodType(lambda self, x: forward(x) + self.factor, scale)


def wrapped(scale: Any) -> None:
    forward = scale.forward

    @functools.wraps(forward)
    def wrapper(x: Tensor) -> Tensor:
        return wrapper.__wrapped__(x)  # type: ignore[attr-defined]

    scale.forward = wrapper


def by_a_weak_reference(scale: Any) -> None:
    own = weakref.ref(scale)
    scale.forward = lambda x: Scale.forward(own(), x)


class Holder:
    """A plain object."""

    def __init__(self, scale: Scale) -> None:
        self.forward = scale.forward


def in_an_object(scale: Any) -> None:
    holder = Holder(scale)
    scale.forward = lambda x: holder.forward(x)


PATCHES = [
    enclosed,
    enclosed_twice,
    in_defaults,
    in_a_partial,
    in_a_dict_and_a_tuple,
    as_a_method,
    wrapped,
    by_a_weak_reference,
    in_an_object,
]


@pytest.mark.parametrize('patch', PATCHES)
def test_a_patched_forward_runs_the_teachers_own_layer(
    patch: Callable[[Any], None],
) -> None:
    student = model()
    patch(student[1])
    x = torch.arange(4.0)
    expected = student(x)
    forward = student[1].forward
    teacher: Any = make_teacher(student)
    assert student[1].forward is forward
    student[0].runs = student[1].runs = 0
    before = teacher[1].runs
    assert torch.equal(teacher(x), expected)
    assert teacher[1].runs == before + 1
    assert student[0].runs == student[1].runs == 0
    # neither follows the other's weights
    with torch.no_grad():
        student[1].factor.add_(1)
    assert torch.equal(teacher(x), expected)
    assert not torch.equal(student(x), expected)


def test_activation_checkpointing_runs_the_teachers_own_layers() -> None:
    student = model()
    turn_on_activation_checkpointing(student, ['0', '1'])
    teacher: Any = make_teacher(student)
    x = torch.arange(4.0, requires_grad=True)
    assert torch.equal(teacher(x), 6 * x)
    assert [scale.runs for scale in student] == [0, 0]
    assert [scale.runs for scale in teacher] == [1, 1]
    assert teacher[0].forward.__wrapped__.__self__ is teacher[0]


def test_functions_that_enclose_one_variable_go_on_sharing_it() -> None:
    student = model()
    count, own = 0, student[0]

    def add() -> None:
        nonlocal count
        assert own is not None
        count += 1

    student.add, student.read = add, lambda: (own, count)[1]
    teacher: Any = make_teacher(student)
    teacher.add()
    teacher.add()
    assert (teacher.read(), student.read()) == (2, 0)


def test_a_function_that_reaches_no_part_of_the_student_is_shared() -> None:
    student, seen = model(), [1]
    student.note = lambda: seen
    assert make_teacher(student).note is student.note


def test_what_cannot_be_rebuilt_is_named() -> None:
    student = model()
    student[1].cached = functools.lru_cache(student[1].forward)
    with pytest.raises(ValueError, match=r"'1\.cached.*own Scale '1'"):
        make_teacher(student)


def shares_a_module(student: Any, teacher: Any) -> None:
    teacher[1].others = {'first': [student[0]]}


def shares_a_parameter(student: Any, teacher: Any) -> None:
    teacher[1].scale = Holder(teacher[1])
    teacher[1].scale.factor = student[1].factor


def shares_a_storage(student: Any, teacher: Any) -> None:
    teacher[1].factor.data = student[1].factor.data


def shares_a_method(student: Any, teacher: Any) -> None:
    teacher[1].forward = student[1].forward


def shares_in_a_hook(student: Any, teacher: Any) -> None:
    teacher[1].register_forward_hook(lambda *_: student[1].factor)


@pytest.mark.parametrize(
    ('share', 'path'),
    [
        (shares_a_module, "1.others['first'][0]"),
        (shares_a_parameter, '1.scale.factor'),
        (shares_a_storage, '1.factor'),
        (shares_a_method, '1.forward.__self__'),
        (shares_in_a_hook, '1._forward_hooks (variable student)'),
    ],
)
def test_the_proof_names_what_is_shared(share: Any, path: str) -> None:
    student = model()
    teacher = make_teacher(student)
    prove_apart(teacher, student)
    share(student, teacher)
    with pytest.raises(ValueError) as caught:
        prove_apart(teacher, student)
    assert path in str(caught.value)


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


class Counter:
    """Counts calls, and refuses to be copied."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1

    def count(self, *args: Any) -> None:
        self.calls += 1

    def __deepcopy__(self, memo: Any) -> Counter:
        raise AssertionError


def hook_dicts(module: nn.Module) -> dict[str, Any]:
    return {
        name: dict(value) for name, value in vars(module).items() if 'hooks' in name
    }


def test_hooks_stay_with_the_student() -> None:
    student, counter = model(), Counter()
    student[0].register_forward_pre_hook(counter, with_kwargs=True)
    student[0].register_forward_hook(counter.count, always_call=True)
    student[1].register_full_backward_hook(counter)
    student[1].register_full_backward_pre_hook(counter.count)
    student[1].register_forward_hook(doubled)
    before = [hook_dicts(module) for module in student.modules()]
    teacher: Any = make_teacher(student)
    assert [hook_dicts(module) for module in student.modules()] == before
    x = torch.arange(4.0, requires_grad=True)
    teacher(x).sum().backward()
    assert counter.calls == 0
    assert not any(
        held for module in teacher.modules() for held in hook_dicts(module).values()
    )
    student(x).sum().backward()
    assert counter.calls == 4


def test_hooks_that_are_asked_for_come_along_bound_to_the_teacher() -> None:
    student, counter = model(), Counter()
    first = student[0]

    def added(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return output + first.factor

    student[1].register_forward_hook(counter)
    student[1].register_forward_hook(doubled)
    student[1].register_forward_hook(added, with_kwargs=True)
    teacher: Any = make_teacher(student, hooks=[added, doubled])
    x = torch.arange(4.0)
    with torch.no_grad():
        first.factor.fill_(0)
    assert torch.equal(teacher(x), 2 * 6 * x + 2)
    assert counter.calls == 0


def without_the_first(module: Any, state: Any, *_: Any) -> None:
    del state['0.factor']


def test_hooks_on_the_state_dict_stay() -> None:
    student = model()
    student._register_state_dict_hook(without_the_first)
    assert set(make_teacher(student).state_dict()) == {'1.factor'}


def weighted() -> list[Any]:
    torch.manual_seed(0)
    return [
        spectral_norm(nn.Linear(4, 3)),
        weight_norm(nn.Linear(4, 3)),
        prune.l1_unstructured(nn.Linear(4, 3), 'weight', 5),
        parametrizations.spectral_norm(nn.Linear(4, 3)),
        parametrizations.weight_norm(nn.Linear(4, 3)),
    ]


IDS = ['spectral', 'weight', 'pruned', 'new spectral', 'new weight']


@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('index', range(5), ids=IDS)
def test_weights_that_are_computed_are_the_teachers_own(index: int) -> None:
    student = weighted()[index]
    x = torch.randn(2, 4)
    student(x).sum().backward()  # leaves a tensor with a history on the module
    weight = vars(student).get('weight')
    teacher = make_teacher(nn.Sequential(student))
    assert vars(student).get('weight') is weight
    before = values_of(teacher)
    outputs = [teacher(x) for _ in range(3)]
    assert all(
        torch.equal(tensor, before[n]) for n, tensor in values_of(teacher).items()
    )
    student.eval()
    assert all(torch.equal(output, student(x)) for output in outputs)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.rand_like(parameter))
    assert torch.equal(teacher(x), outputs[0])


def test_loggers_are_shared_and_locks_are_new() -> None:
    student = model()
    student.log = MMLogger.get_instance('apart')
    student[0].log = logging.getLogger('apart')
    student.lock, student[0].lock = threading.Lock(), threading.RLock()
    student.condition = threading.Condition()
    student.event = threading.Event()
    with student.lock, student[0].lock:
        teacher: Any = make_teacher(student)
        assert teacher.log is student.log and teacher[0].log is student[0].log
        assert teacher.lock.acquire(blocking=False)
        assert type(teacher[0].lock) is type(student[0].lock)
    teacher.event.set()
    with teacher.condition:
        teacher.condition.notify_all()
    assert not student.event.is_set()


def test_what_cannot_be_copied_is_named(tmp_path: Path) -> None:
    student = model()
    with (tmp_path / 'file').open('w') as student[1].file:
        with pytest.raises(ValueError, match=r"'file' of Scale '1'.*TextIO") as caught:
            make_teacher(student)
        assert '\n' not in str(caught.value)


def test_a_parameter_without_a_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape"):
        make_teacher(nn.Sequential(nn.LazyLinear(3)))


def test_making_a_teacher_leaves_the_student_as_it_was() -> None:
    student: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    student[0].forward = functools.partial(nn.Linear.forward, student[0])
    student[1].register_forward_hook(doubled)
    student(torch.randn(5, 4)).sum().backward()
    values, stream = values_of(student), torch.get_rng_state()
    before = [dict(vars(module)) for module in student.modules()]
    contents = [hook_dicts(module) for module in student.modules()]
    make_teacher(student)
    for module, old, hooks in zip(student.modules(), before, contents):
        assert vars(module).keys() == old.keys()
        assert all(value is old[name] for name, value in vars(module).items())
        assert hook_dicts(module) == hooks
    assert all(torch.equal(t, values[n]) for n, t in values_of(student).items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.requires_grad and p.grad is not None for p in student.parameters())


def test_a_teacher_is_gone_when_it_is_let_go() -> None:
    student = model()
    enclosed(student[1])
    student[0].register_forward_hook(doubled)
    gc.disable()
    try:
        factor = weakref.ref(make_teacher(student)[0].factor)
        assert factor() is None
    finally:
        gc.enable()
