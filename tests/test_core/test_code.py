"""Methods and classes that a student is given in the run."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from torch import Tensor, nn
from toys import OTHERS, Toy, distilled, step


class Doubled(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def wrap(model: Any) -> None:
    plain = model.backbone.forward
    model.backbone.forward = lambda x: 2 * plain(x)


def doubled(module: Any, x: Tensor) -> Tensor:
    product: Tensor = 2 * module.factor * x
    return product


def bind(model: Any) -> None:
    model.backbone.forward = types.MethodType(doubled, model.backbone)


def bind_partly(model: Any) -> None:
    model.backbone.forward = functools.partial(doubled, model.backbone)


def change_class(model: Any) -> None:
    model.backbone.__class__ = Doubled


changes = pytest.mark.parametrize(
    'change', [wrap, bind, bind_partly, change_class], ids=lambda each: each.__name__
)
MESSAGE = r"other code than its teacher: 'backbone' \((Scale|Doubled)\) was given a m"


@changes
def test_code_that_the_student_is_given_in_the_run_is_an_error(
    change: Callable[[Any], None],
) -> None:
    student = Toy()
    with distilled(student, OTHERS) as distiller:
        assert step(distiller) == step(distiller) == dict(features=3, logits=29)
        change(student)
        with pytest.raises(RuntimeError, match=MESSAGE):
            step(distiller)


@changes
def test_and_before_the_first_iteration_after_the_teacher_was_made(
    change: Callable[[Any], None],
) -> None:
    student = Toy()
    with distilled(student, OTHERS) as distiller:
        change(student)
        with pytest.raises(RuntimeError, match=MESSAGE):
            step(distiller)


@changes
def test_code_that_was_there_before_is_the_teachers_too(
    change: Callable[[Any], None],
) -> None:
    student = Toy()
    change(student)
    with distilled(student, OTHERS) as distiller:
        found = step(distiller)
        assert found == step(distiller)
    assert found == dict(features=6, logits=58)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_a_part_without_weights_that_a_hook_exchanges_is_copied() -> None:
    student: Any = Toy()
    student.bbox_head = nn.Sequential(Scale(3.0), nn.Identity())
    factors = {'backbone': 5.0, 'bbox_head.0': 7.0}
    with distilled(student, factors) as distiller:
        teacher: Any = distiller.teacher
        assert step(distiller) == step(distiller) == dict(features=3, logits=29)
        student.bbox_head[1] = Squared()
        assert step(distiller) == step(distiller) == dict(features=3, logits=35**2 - 36)
        assert teacher.bbox_head[1] is not student.bbox_head[1]
        # one with weights has no teacher
        student.bbox_head[1] = Doubled(2.0)
        with pytest.raises(RuntimeError, match='bbox_head'):
            step(distiller)


class Parts(Toy):
    """Its head has two parts after it, which a hook may exchange."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.bbox_head = nn.Module()
        self.bbox_head.scale = Scale(3.0)
        self.bbox_head.first, self.bbox_head.second = first, second
        self.bbox_head.forward = self.run

    def run(self, x: Tensor) -> Any:
        head: Any = self.bbox_head
        x = head.scale(x)
        for part in (head.first, head.second):
            x = x if part is None else part(x)
        return x


def same() -> tuple[nn.Module, nn.Module]:
    part = nn.Identity()
    return part, part


EXCHANGES: dict[str, tuple[Any, dict[str, Any], int]] = {
    'one object twice': (lambda: (nn.Identity(), nn.Identity()), {'both': Squared}, 4),
    'one of two names': (same, {'second': Squared}, 2),
    'where none was': (lambda: (None, nn.Identity()), {'first': Squared}, 2),
    'by none': (lambda: (Squared(), None), {'first': lambda: None}, 1),
    'by none of two': (lambda: (Squared(), Squared()), {'both': lambda: None}, 1),
}


@pytest.mark.parametrize('case', EXCHANGES)
def test_whatever_has_no_weights_is_the_teachers_too(case: str) -> None:
    make, changes, power = EXCHANGES[case]
    student = Parts(*make())
    factors = {'backbone': 5.0, 'bbox_head.scale': 7.0}
    with distilled(student, factors) as distiller:
        step(distiller)
        for name, new in changes.items():
            part = new()
            for each in ('first', 'second') if name == 'both' else (name,):
                setattr(student.bbox_head, each, part)
        for _ in range(2):
            assert step(distiller)['logits'] == (5 * 7) ** power - (2 * 3) ** power
        assert [*distiller.teacher.state_dict()] == [*student.state_dict()]


class Lazy(Scale):
    """Makes a function when it is first asked for one."""

    @functools.cached_property
    def act(self) -> Any:
        return functools.partial(torch.mul, torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.act(super().forward(x))
        return product


def test_a_function_that_is_made_late_takes_no_methods_place() -> None:
    student = Toy()
    student.bbox_head = Lazy(3.0)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == 2 * 29


def test_another_function_of_the_same_code_is_noticed() -> None:
    student: Any = Toy()

    def put(by: float) -> None:
        student.backbone.forward = lambda x: by * student.backbone.factor * x

    put(1.0)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller) == step(distiller) == dict(features=3, logits=29)
        put(2.0)
        with pytest.raises(RuntimeError, match=MESSAGE):
            step(distiller)


def test_a_function_in_no_methods_place_is_left_alone() -> None:
    student: Any = Toy()
    with distilled(student, OTHERS) as distiller:
        for count in range(3):
            assert step(distiller) == dict(features=3, logits=29)
            student.backbone.note = functools.partial(print, count)
