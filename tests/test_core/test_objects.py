"""Settings, counters and coders of modules are the student's in its teacher too."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest
import torch
from helpers import Scale, added
from images import ImageToy, Numbered, images, losses
from mmengine.config import ConfigDict
from torch import Tensor, nn
from toys import OTHERS, Toy, distilled, step

from mmselfdistill.core.attributes import Attributes
from mmselfdistill.core.objects import object_at, objects_in

LOGITS = 5 * 7 - 2 * 3


class Holding(Scale):
    """Multiplies by what it makes of an object that it holds, too."""

    def __init__(self, held: Any, read: Callable[[Any], Any]) -> None:
        super().__init__(3.0)
        self.held, self.read = held, read

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.read(self.held)


def student_with(held: Any, read: Callable[[Any], Any]) -> Toy:
    student = Toy()
    student.bbox_head = Holding(held, read)
    return student


@dataclass
class Settings:
    scale: float = 1.0


class Multiply(Settings):
    def __call__(self, x: float) -> float:
        return x * self.scale


def set_scale(held: Any, number: float) -> None:
    held.scale = number


def set_item(held: Any, number: float) -> None:
    held['scales'][0] = number


CASES: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any, float], None]]] = {
    'a config': (ConfigDict(scale=1.0), lambda held: held.scale, set_scale),
    'a config in a config': (
        ConfigDict(inner=dict(scale=1.0)),
        lambda held: held.inner.scale,
        lambda held, number: set_scale(held.inner, number),
    ),
    'a namespace': (SimpleNamespace(scale=1.0), lambda held: held.scale, set_scale),
    'an empty one': (
        SimpleNamespace(),
        lambda held: getattr(held, 'scale', 1.0),
        set_scale,
    ),
    'a dataclass': (Settings(), lambda held: held.scale, set_scale),
    'what is called': (Multiply(), lambda held: held(1.0), set_scale),
    'an object in an object': (
        SimpleNamespace(inner=Settings()),
        lambda held: held.inner.scale,
        lambda held, number: set_scale(held.inner, number),
    ),
    'objects in a list': (
        [Settings(), Settings()],
        lambda held: held[0].scale * held[1].scale,
        lambda held, number: set_scale(held[1], number),
    ),
    'an array in a dict': (
        {'scales': np.ones(2)},
        lambda held: float(held['scales'][0]),
        set_item,
    ),
    'a tensor in an object': (
        Settings(),
        lambda held: held.scale,
        lambda held, number: set_scale(held, torch.tensor(number)),  # type: ignore
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_what_a_hook_sets_in_an_object(case: str) -> None:
    held, read, change = CASES[case]
    student = student_with(held, read)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller)['logits'] == LOGITS
        for number in (2.0, 3.0, 3.0):
            change(student.bbox_head.held, number)
            assert step(distiller)['logits'] == number * LOGITS
        # the two have one each
        teacher: Any = distiller.teacher
        assert teacher.bbox_head.held is not student.bbox_head.held


def test_an_object_that_takes_anothers_place() -> None:
    student = student_with(Settings(), lambda held: 4.0 if held is None else held.scale)
    with distilled(student, OTHERS) as distiller:
        for number in (1.0, 2.0, 3.0):
            student.bbox_head.held = Settings(number)
            assert step(distiller)['logits'] == number * LOGITS
        student.bbox_head.held = None
        for _ in range(2):
            assert step(distiller)['logits'] == 4 * LOGITS


def test_an_object_of_another_class_is_refused_where_it_is_read() -> None:
    student = student_with(Settings(), lambda held: held.scale)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller)['logits'] == LOGITS
        student.bbox_head.held = Multiply()
        with pytest.raises(RuntimeError, match='the object there is of another class'):
            step(distiller)


def counted(held: Any) -> int:
    held.count += 1
    return int(held.count)


@pytest.mark.parametrize('frozen', [False, True])
def test_a_count_in_an_object_is_made_once_on_both_sides(frozen: bool) -> None:
    student = student_with(SimpleNamespace(count=0), counted)
    # what is frozen is proven: the calls are repeated more than once
    student.backbone.requires_grad_(not frozen)
    factors = {'bbox_head': 7.0} if frozen else OTHERS
    gap = 2 * 7 - 2 * 3 if frozen else LOGITS
    with distilled(student, factors) as distiller:
        for number in (1, 2, 3):
            assert step(distiller)['logits'] == number * gap
        assert student.bbox_head.held.count == 3


@pytest.mark.parametrize('hold', [lambda g: SimpleNamespace(g=g), lambda g: {'g': g}])
def test_a_generator_in_an_object_draws_the_students_numbers(hold: Any) -> None:
    def read(held: Any) -> Tensor:
        generator = held['g'] if isinstance(held, dict) else held.g
        return torch.rand((), generator=generator)

    student = student_with(hold(torch.Generator().manual_seed(3)), read)
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(3))
    with distilled(student, OTHERS) as distiller:
        for number in drawn.tolist():
            assert step(distiller)['logits'] == pytest.approx(number * LOGITS)


class Passing(Toy):
    """Leaves its features in an object that its head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.between = SimpleNamespace(features=torch.zeros(()))
        self.bbox_head = Holding(self.between, lambda held: held.features.abs())

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        self.between.features = features
        return self.bbox_head(features)


def test_features_in_an_object_that_two_parts_hold_are_the_teachers() -> None:
    with distilled(Passing(), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == 5 * 7 * 5 - 2 * 3 * 2


class ByMode(ImageToy):
    """Sets an object of its head by what it is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = Holding(Settings(), lambda held: held.scale)

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        self.bbox_head.held.scale = 2.0 if mode == 'loss' else 4.0
        return super().forward(inputs, data_samples, mode)


def test_an_object_that_is_set_for_each_kind_of_images() -> None:
    batches: Any = Numbered()
    settings = dict(batches=batches)
    with distilled(ByMode().eval(), OTHERS, unlabeled=settings) as distiller:
        for number in (1, 2, 3):
            found = added(losses(distiller))
            mean = float(images().mean())
            assert float(found['logits']) == pytest.approx(2 * LOGITS * mean)
            mean += number
            assert float(found['logits_unlabeled']) == pytest.approx(4 * LOGITS * mean)


class One:
    """There is one of it, of which no copy is made."""

    def __init__(self) -> None:
        self.count = 0

    def __deepcopy__(self, memo: Any) -> One:
        return self


def test_an_object_that_both_share_is_left_alone() -> None:
    student = student_with(One(), counted)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            step(distiller)
        distiller.detach()
        before = student.bbox_head.held.count
        assert before > 2
        student(torch.ones(1))
        assert student.bbox_head.held.count == before + 1


def test_where_objects_are_found() -> None:
    module: Any = nn.Module()
    inner = Settings()
    module.first = SimpleNamespace(inner=[inner, torch.ones(1), nn.Linear(1, 1)])
    module.config = ConfigDict(a=dict(b=1))
    module.own, module.again = nn.Identity(), inner
    found = {place.key[1:]: place.value for place in objects_in(module)}
    # each once, and nothing of a module that is a part
    assert len(found) == 4
    assert {id(value) for value in found.values()} == {
        *(id(inner), id(module.first)),
        *(id(module.config), id(dict.__getitem__(module.config, 'a'))),
    }
    assert all(object_at(vars(module), key) is value for key, value in found.items())
    assert object_at(vars(module), ('first', 'inner', 9)) is None


def test_what_was_read_for_a_call_stays_what_it_was() -> None:
    module: Any = nn.Module()
    module.part = nn.Module()
    module.part.held = [1, 2]
    attributes = Attributes(module)
    (before,) = [each for each in attributes.now() if each.numbers]
    module.part.held = [torch.ones(1)]
    (after,) = [each for each in attributes.now() if each.others]
    module.part.held = [3]
    (last,) = [each for each in attributes.now() if each.numbers]
    assert (before.numbers, before.others) == ({'held': [1, 2]}, {})
    assert after.numbers == {} and last.numbers == {'held': [3]}
