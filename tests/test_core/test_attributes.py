"""What a call depends on besides its arguments is the same in the teacher."""

from __future__ import annotations

import gc
import random
import weakref
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest
import torch
from helpers import Scale
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm
from toys import OTHERS, Toy, distilled, step

from mmselfdistill.core.teacher import make_teacher, tensors_of

LOGITS = 5 * 7 - 2 * 3


class Head(Scale):
    """Multiplies by what a function makes of the module, too."""

    def __init__(self, factor: Callable[[Any], Any]) -> None:
        super().__init__(3.0)
        self.more, self.temperature, self.calls = factor, 1.0, 0
        self.generator = torch.Generator().manual_seed(0)
        self.scales: Any = [dict(low=1.0)]
        self.left: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.more(self)


def counted(head: Any) -> int:
    head.calls += 1
    return int(head.calls)


@pytest.mark.parametrize(
    ('factor', 'expected'),
    [
        (lambda head: head.temperature, [1.0, 2.0, 3.0]),
        (lambda head: head.scales[0]['low'], [1.0, 2.0, 3.0]),
        (counted, [1, 2, 3]),
        (lambda head: random.random(), random.Random(0)),
        (lambda head: np.random.rand(), np.random.RandomState(0)),
        (
            lambda head: torch.rand((), generator=head.generator),
            torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist(),
        ),
    ],
    ids=[
        'set by a hook',
        'set within a list',
        'a count',
        'Python',
        'NumPy',
        'a generator of its own',
    ],
)
def test_numbers_are_the_students(factor: Any, expected: Any) -> None:
    if isinstance(expected, random.Random):
        expected = [expected.random() for _ in range(3)]
    elif isinstance(expected, np.random.RandomState):
        expected = expected.rand(3).tolist()
    random.seed(0)
    np.random.seed(0)
    student = Toy()
    student.bbox_head = Head(factor)
    with distilled(student, OTHERS) as distiller:
        for number, wanted in enumerate(expected):
            student.bbox_head.temperature = number + 1.0
            student.bbox_head.scales[0]['low'] = number + 1.0
            assert step(distiller)['logits'] == pytest.approx(LOGITS * wanted)
    # no stream is moved by the teacher
    assert random.random() != expected[0]
    assert student.bbox_head.calls in (0, 3)


def test_a_list_in_a_tuple_is_each_sides_own() -> None:
    class Counting(Scale):
        def __init__(self) -> None:
            super().__init__(3.0)
            self.state = ({'calls': 0},)

        def forward(self, x: Tensor) -> Tensor:
            self.state[0]['calls'] += 1
            return super().forward(x) * self.state[0]['calls']

    student = Toy()
    student.bbox_head = Counting()
    with distilled(student, OTHERS) as distiller:
        for number in (1, 2, 3):
            assert step(distiller)['logits'] == LOGITS * number
            assert student.bbox_head.state == ({'calls': number},)


def test_what_was_left_at_a_module_is_let_go_with_the_iteration() -> None:
    held: list[Any] = []

    class Leaving(Toy):
        def logits(self, inputs: Tensor) -> Any:
            features = self.extract_feat(inputs)
            held.append(weakref.ref(features))
            self.bbox_head.left = features
            logits = self.bbox_head(features)
            self.bbox_head.left = None
            return logits

    student = Leaving()
    student.bbox_head = Head(lambda head: 1.0)
    for begin in (0.0, 0.5):
        schedule = dict(type='constant', begin=begin)
        with distilled(student, OTHERS, schedule=schedule) as distiller:
            for _ in range(2):
                step(distiller)
                gc.collect()
                assert held[-1]() is None


def test_a_count_goes_on_while_the_teacher_rests() -> None:
    student = Toy()
    student.bbox_head = Head(counted)
    with distilled(student, OTHERS, every=2) as distiller:
        found = []
        for number in range(4):
            distiller.iteration = number
            found.append(step(distiller)['logits'])
    assert found == [2 * LOGITS * 1, 0, 2 * LOGITS * 3, 0]


def test_features_that_are_left_at_a_module_are_the_teachers() -> None:
    class Leaving(Toy):
        def logits(self, inputs: Tensor) -> Any:
            features = self.extract_feat(inputs)
            self.bbox_head.left = [features]
            return self.bbox_head(inputs)

    student = Leaving()
    student.bbox_head = Head(lambda head: head.left[0])
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == LOGITS


def test_precision_is_that_of_the_call() -> None:
    class Exact(Toy):
        def logits(self, inputs: Tensor) -> Any:
            features = self.extract_feat(inputs)
            with torch.autocast('cpu', enabled=False):
                return self.bbox_head(features)

    class Matrix(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.eye(3) * 1.001

    student = Exact()
    student.bbox_head = Matrix(3.0)
    with distilled(student, OTHERS) as distiller, torch.autocast('cpu', torch.bfloat16):
        for _ in range(2):
            assert step(distiller)['logits'] == pytest.approx(LOGITS * 1.001, 1e-6)


class Keeping(Scale):
    """Halves a buffer with each call."""

    def __init__(self) -> None:
        super().__init__(3.0)
        self.register_buffer('memory', torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.get_buffer('memory')
        memory.mul_(0.5)
        return super().forward(x) * memory.clone()


def test_a_teachers_buffers_stay() -> None:
    student = Toy()
    student.bbox_head = Keeping()
    with distilled(student, OTHERS) as distiller:
        for number in range(1, 4):
            assert step(distiller)['logits'] == 5 * 7 * 0.5 - 2 * 3 * 0.5**number
        assert distiller.teacher is not None
        assert distiller.teacher.get_buffer('bbox_head.memory') == 1


class Given(Scale):
    """Its features are made by what it is given, or changed by it."""

    def forward(self, x: Tensor, given: Any) -> Tensor:  # type: ignore[override]
        if isinstance(given, (InstanceData, SimpleNamespace)):
            given.scale = given.scale * 2
            given.more = x
            return super().forward(x) * given.scale
        return super().forward(given(x))


def scale(model: Any, features: Tensor) -> Any:
    return InstanceData(metainfo=dict(n=1), scale=torch.ones(2, 1))


@pytest.mark.parametrize(
    ('give', 'logits'),
    [
        (lambda model, features: model.adapter, 5 * 11 * 7 - 6),
        (lambda model, features: model.adapter.forward, 5 * 11 * 7 - 6),
        (lambda model, features: model.extract_feat, 5 * 5 * 7 - 12),
        (lambda model, features: torch.nn.functional.relu, None),
        (scale, 2 * LOGITS),
    ],
    ids=['a module', 'a method', 'a seam', 'a plain function', 'a data element'],
)
def test_what_a_call_is_given_to_work_with(give: Any, logits: Any) -> None:
    with distilled(GivingToy(give), {**OTHERS, 'adapter': 11.0}) as distiller:
        for _ in range(2):
            found = step(distiller)['logits']
            assert found == (
                pytest.approx(LOGITS * 2 / 3) if logits is None else logits
            )


class GivingToy(Toy):
    def __init__(self, give: Any) -> None:
        super().__init__()
        self.adapter, self.give = Scale(1.0), give
        self.bbox_head = Given(3.0)

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        return self.bbox_head(features, self.give(self, features))


@pytest.mark.parametrize(
    ('give', 'message'),
    [
        (
            lambda model, x: lambda y: model.adapter(y),
            'is a function that holds a part',
        ),
        (lambda model, x: lambda y: x + y, 'is a function that holds'),
        (
            lambda model, x: SimpleNamespace(scale=1),
            "'scale' of a SimpleNa",
        ),
    ],
    ids=['of a module', 'of features', 'a changed object'],
)
def test_what_the_teacher_cannot_be_given(give: Any, message: str) -> None:
    raised = pytest.raises(RuntimeError, match=message)
    with distilled(GivingToy(give), OTHERS) as distiller, raised:
        step(distiller)


class Hooked(Toy):
    """Takes its features by a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []
        self.backbone.register_forward_hook(self.take)

    def take(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.taken.append(output)

    def extract_feat(self, inputs: Tensor) -> Any:
        self.taken.clear()
        self.backbone(inputs)
        return self.taken[0]


def test_a_models_own_hook_is_the_teachers_too() -> None:
    student = Hooked()
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=LOGITS)
    teacher: Any = make_teacher(student)
    (hook,) = teacher.backbone._forward_hooks.values()
    assert hook.__self__ is teacher


def test_a_loss_that_is_no_dict_is_refused() -> None:
    class Pair(Toy):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs), {}

    raised = pytest.raises(TypeError, match=r'^self_distill: Pair returns a tuple in')
    with distilled(Pair(), OTHERS) as distiller, raised:
        step(distiller)


def test_a_pass_without_gradient_is_not_the_first() -> None:
    class Doubled(Toy):
        def logits(self, inputs: Tensor) -> Any:
            return self.bbox_head(self.extract_feat(inputs) * 2)

    with distilled(Doubled(), OTHERS) as distiller:
        with torch.no_grad():
            step(distiller)
        with pytest.raises(RuntimeError, match='cannot repeat') as error:
            step(distiller)
        assert 'not so in the first' not in str(error.value)


@pytest.mark.parametrize('kind', ['weight norm', 'pruned'])
def test_a_weight_that_a_hook_computes_is_the_teachers(kind: str) -> None:
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    if kind == 'weight norm':
        weight_norm(head)
        scaled = 'bbox_head.weight_g'
    else:
        prune.identity(head, 'weight')
        scaled = 'bbox_head.weight_mask'
    student = Toy()
    student.bbox_head = head
    with distilled(student, {'backbone': 5.0}) as distiller:
        assert step(distiller)['logits'] == pytest.approx(5 - 2)
        teacher: Any = distiller.teacher
        with torch.no_grad():
            tensors_of(teacher)[scaled].mul_(2)
        for _ in range(2):
            assert step(distiller)['logits'] == pytest.approx(10 - 2)
