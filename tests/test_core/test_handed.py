"""What modules hold besides weights is handed to the teacher's, or refused."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, Callable

import numpy as np
import pytest
import torch
from helpers import Remembering, Scale, only
from torch import Tensor, nn
from toys import OTHERS, Gap, Toy, distilled, set_factors, step

LOGITS = 5 * 7 - 2 * 3
LOGITS_ALONE = dict(features=None, logits=dict(type=Gap, site='bbox_head'))


class Phase(Enum):
    FIRST = 1
    SECOND = 2
    THIRD = 3


class Reading(Scale):
    """Multiplies by what it makes of a value that it holds, too."""

    def __init__(self, held: Any, read: Callable[[Any], Any] = float) -> None:
        super().__init__(3.0)
        self.held, self.read = held, read

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.read(self.held)


def itself(held: Any) -> Any:
    return held


def once() -> float:
    return 1.0


def twice() -> float:
    return 2.0


def thrice() -> float:
    return 3.0


@pytest.mark.parametrize(
    ('read', 'values'),
    [
        (itself, [1.0, torch.tensor(2.0), torch.tensor(3.0)]),
        (itself, [torch.tensor(1.0), torch.tensor(2.0), 3.0]),
        (lambda held: held[1], [[0, torch.tensor(float(n))] for n in (1, 2, 3)]),
        (float, [1.0, np.float32(2), np.int64(3)]),
        (lambda held: float(held[0]), [np.array([n]) for n in (1, 2, 3)]),
        (abs, [1j, 2j, 3j]),
        (lambda held: held.value, [*Phase]),
        (max, [{1}, {2}, {3}]),
        (lambda held: held[0], [deque([n]) for n in (1, 2, 3)]),
        (lambda held: held[99], [[n] * 100 for n in (1, 2, 3)]),
        (lambda held: held(), [once, twice, thrice]),
    ],
    ids=[
        *('a number, then tensors', 'tensors, then a number', 'a list of tensors'),
        *('numbers of NumPy', 'arrays', 'complex numbers', 'members of an enum'),
        *('sets', 'queues', 'a hundred numbers', 'functions'),
    ],
)
def test_what_a_hook_puts_there_is_the_students(read: Any, values: list[Any]) -> None:
    student = Toy()
    student.bbox_head = Reading(values[0], read)
    with distilled(student, OTHERS) as distiller:
        for number, value in enumerate(values, 1):
            student.bbox_head.held = value
            assert step(distiller)['logits'] == number * LOGITS
        assert step(distiller)['logits'] == 3 * LOGITS


def test_a_tensor_that_a_hook_changes_in_place() -> None:
    student = Toy()
    student.bbox_head = Reading(torch.tensor(1.0), itself)
    with distilled(student, OTHERS) as distiller:
        for number in (1, 2, 3):
            student.bbox_head.held.fill_(number)
            assert step(distiller)['logits'] == number * LOGITS
        teacher: Any = distiller.teacher
        # it has its own copy
        teacher.bbox_head.held.fill_(9.0)
        assert student.bbox_head.held == 3


def test_what_a_hook_takes_away_is_taken_from_the_teacher() -> None:
    student = Toy()
    student.bbox_head = Optional(3.0)
    with distilled(student, OTHERS) as distiller:
        student.bbox_head.extra = 2.0
        assert step(distiller)['logits'] == 2 * LOGITS
        del student.bbox_head.extra
        assert step(distiller)['logits'] == LOGITS
        student.bbox_head.extra = 3.0
        assert step(distiller)['logits'] == 3 * LOGITS


def test_a_number_that_becomes_a_weight_is_no_number_of_the_teacher() -> None:
    student = Toy()
    student.bbox_head = Reading(1.0, itself)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller)['logits'] == LOGITS
        del student.bbox_head.held
        student.bbox_head.held = nn.Parameter(torch.tensor(2.0))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no attribute 'held'"):
                step(distiller)


class Optional(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(self, 'extra', 1.0)


def test_a_slope_that_a_hook_changes() -> None:
    student = Toy()
    student.bbox_head = nn.Sequential(Scale(3.0), nn.LeakyReLU(1.0))
    with distilled(student, {'backbone': 5.0, 'bbox_head.0': 7.0}) as distiller:
        assert step(distiller)['logits'] == LOGITS
        student.bbox_head[1].negative_slope = 0.0
        # a third of the signs are negative
        assert step(distiller)['logits'] == pytest.approx(LOGITS * 2 / 3)


class Moded(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


def test_the_mode_is_the_students() -> None:
    student = Toy()
    student.bbox_head = Moded(3.0)
    with distilled(student, OTHERS) as distiller:
        for mode, factor in ((True, 2), (False, 1), (True, 2)):
            student.bbox_head.train(mode)
            assert step(distiller)['logits'] == factor * LOGITS


class Doubling(Scale):
    def __init__(self, numbers: list[float]) -> None:
        super().__init__(3.0)
        self.numbers = numbers

    def forward(self, x: Tensor) -> Tensor:
        self.numbers[0] *= 2
        return super().forward(x)


def test_a_list_that_two_modules_hold_is_one_in_the_teacher_too() -> None:
    numbers = [1.0]
    student = Toy()
    reading = Reading(numbers, lambda held: held[0])
    student.bbox_head = nn.Sequential(Doubling(numbers), reading)
    with distilled(student, {'backbone': 5.0}) as distiller:
        for number in (1.0, 2.0, 3.0):
            numbers[0] = number
            assert step(distiller)['logits'] == (5 - 2) * 3 * 3 * 2 * number


class LeavingToy(Toy):
    """Leaves something at its head, which reads it there."""

    def __init__(self, leave: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.leave = leave
        self.bbox_head = Reading(torch.ones(2, 3), itself)

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        self.bbox_head.held = self.leave(inputs, features)
        return self.bbox_head(inputs.abs())


def test_a_mask_that_is_left_at_a_module_is_the_students() -> None:
    student = LeavingToy(lambda inputs, features: (inputs > 0).float())
    with distilled(student, {'bbox_head': 7.0}) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == pytest.approx((7 - 3) * 2 / 3)


@pytest.mark.parametrize('part', [Tensor.detach, lambda features: features[:]])
def test_a_part_of_what_a_call_returned_is_left_as_the_teachers(part: Any) -> None:
    student = LeavingToy(lambda inputs, features: part(features))
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == LOGITS


def test_what_depends_on_weights_is_not_left_unnoticed() -> None:
    student = LeavingToy(lambda inputs, features: features * 2)
    message = r"no attribute 'held'\. The student has a tensor there of which the teach"
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                step(distiller)


def test_what_nobody_reads_is_no_error() -> None:
    class Noting(Toy):
        def logits(self, inputs: Tensor) -> Any:
            features = self.extract_feat(inputs)
            self.backbone.noted = features * 2
            return self.bbox_head(features)

    with distilled(Noting(), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=LOGITS)


def test_a_call_depends_on_what_another_has_left() -> None:
    student = LeavingToy(lambda inputs, features: features)
    with distilled(student, OTHERS, terms=LOGITS_ALONE) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == LOGITS
    with distilled(student, OTHERS) as distiller:
        assert step(distiller) == dict(features=3, logits=LOGITS)
        # from now on the head's term is alone, and the features are others
        only(distiller.terms, 'features').weight = 0.0
        teacher: Any = distiller.teacher
        set_factors(teacher, {'backbone': 11.0})
        assert step(distiller)['logits'] == 11 * 7 - 2 * 3


@pytest.mark.parametrize('frozen', [False, True])
def test_what_a_call_left_in_the_iteration_before_is_the_teachers(frozen: bool) -> None:
    student = Toy()
    student.bbox_head = Remembering()
    # what is frozen is proven: the calls are repeated more than once
    student.backbone.requires_grad_(not frozen)
    factors = {'bbox_head': 7.0} if frozen else OTHERS
    gap = 2 * 7 - 2 * 3 if frozen else LOGITS
    with distilled(student, factors) as distiller:
        for factor in (1, 1.5, 1.75, 1.875):
            assert step(distiller)['logits'] == gap * factor
        distiller.prove_again()
        assert step(distiller)['logits'] == gap * 1.9375


def test_weights_stay_the_objects_that_they_are() -> None:
    student = Toy()
    student.bbox_head = Remembering()
    with distilled(student, OTHERS) as distiller:
        teacher: Any = distiller.teacher
        before = [*teacher.parameters()]
        for _ in range(2):
            step(distiller)
        assert all(a is b for a, b in zip(before, teacher.parameters()))


def test_a_memory_of_a_teacher_that_rests_is_refused() -> None:
    student = Toy()
    student.bbox_head = Remembering()
    with distilled(student, OTHERS, every=2) as distiller:
        found = []
        for number in range(2):
            distiller.iteration = number
            found.append(step(distiller)['logits'])
        assert found == [2 * LOGITS, 0]
        distiller.iteration = 2
        message = 'of an iteration in which the teacher was not run'
        with pytest.raises(RuntimeError, match=message):
            step(distiller)


class Queue(Toy):
    """Its head multiplies by how many numbers are in a queue, which is filled later."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.bbox_head = Reading(torch.zeros(4), torch.count_nonzero)

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        logits = self.bbox_head(features)
        queue = torch.cat([self.bbox_head.held[1:], features.detach()[:1, 0]])
        if self.in_place:
            self.bbox_head.held.copy_(queue)
        else:
            self.bbox_head.held = queue
        return logits


@pytest.mark.parametrize('schedule', [None, dict(type='constant', begin=0.5)])
def test_a_queue_that_is_filled_after_the_calls_is_the_students(schedule: Any) -> None:
    with distilled(Queue(False), OTHERS, schedule=schedule) as distiller:
        for number in range(4):
            distiller.progress = number / 4
            due = schedule is None or number >= 2
            assert step(distiller)['logits'] == (number * LOGITS if due else 0)


def test_a_queue_that_is_filled_in_place_is_refused() -> None:
    with distilled(Queue(True), OTHERS) as distiller:
        assert step(distiller)['logits'] == 0
        with pytest.raises(RuntimeError, match='changed in place'):
            step(distiller)


class Counting(Scale):
    """Multiplies by the number of its calls, which it counts in place."""

    def __init__(self) -> None:
        super().__init__(3.0)
        self.calls = torch.tensor(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * float(self.calls)


@pytest.mark.parametrize('frozen', [False, True])
def test_a_count_in_place_is_made_once_on_both_sides(frozen: bool) -> None:
    student = Toy()
    student.bbox_head = Counting()
    student.backbone.requires_grad_(not frozen)
    factors = {'bbox_head': 7.0} if frozen else OTHERS
    gap = 2 * 7 - 2 * 3 if frozen else LOGITS
    with distilled(student, factors) as distiller:
        for number in (1, 2, 3):
            assert step(distiller)['logits'] == number * gap
        teacher: Any = distiller.teacher
        assert teacher.bbox_head.calls == 3
        # what it was before the call is not known any more
        student.bbox_head.calls = torch.tensor(9)
        with pytest.raises(RuntimeError, match='changed in place what a hook'):
            step(distiller)


class Building(Scale):
    """Builds a mask in its first call, of the size of what it is given."""

    mask: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones_like(x)
        return super().forward(x) * self.mask


def test_settings_without_tensors_are_noted_in_the_first_iteration_alone() -> None:
    student = Toy()
    student.bbox_head = Reading([1, 2], len)
    with distilled(student, OTHERS) as distiller:
        for _ in range(3):
            assert step(distiller)['logits'] == 2 * LOGITS
            assert distiller.labeled.twins.of(distiller.teacher).handed._last == {}
    student.bbox_head = Remembering()
    with distilled(student, OTHERS) as distiller:
        step(distiller)
        twin = distiller.labeled.twins.of(distiller.teacher)
        assert [name for _, name in twin.handed._last] == ['memory']


def test_what_is_built_once_is_no_memory() -> None:
    student = Toy()
    student.bbox_head = Building(3.0)
    student.bbox_head.mask = None
    with distilled(student, OTHERS, every=2) as distiller:
        found = []
        for number in range(4):
            distiller.iteration = number
            found.append(step(distiller)['logits'])
    assert found == [2 * LOGITS, 0, 2 * LOGITS, 0]


def test_a_tensor_that_trains_is_the_teachers_own() -> None:
    student = Toy()
    student.bbox_head = Reading(torch.ones((), requires_grad=True), itself)
    with distilled(student, OTHERS) as distiller:
        for factor in (1, 2):
            student.bbox_head.held.data.fill_(factor)
            student.bbox_head.held.detach().mul_(1)
            assert step(distiller)['logits'] == 5 * 7 - 2 * 3 * factor


@pytest.mark.parametrize(
    'hold', [lambda x: {'at': x, 'of': object()}, lambda x: [x, object()]]
)
def test_numbers_next_to_objects_are_the_students(hold: Any) -> None:
    student = Toy()
    student.bbox_head = Reading(hold(1.0), lambda held: next(iter(values_in(held))))
    with distilled(student, OTHERS) as distiller:
        for number in (1.0, 2.0):
            key = 'at' if isinstance(student.bbox_head.held, dict) else 0
            student.bbox_head.held[key] = number
            assert step(distiller)['logits'] == number * LOGITS


def values_in(held: Any) -> Any:
    return held.values() if isinstance(held, dict) else held
