"""What reaches a call in odd ways: parts, calls without gradient, later iterations."""

from __future__ import annotations

import re
from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import OTHERS, TERMS, Toy, distilled, step

RIGHT = dict(features=3, logits=5 * 7 - 2 * 3)


class OddToy(Toy):
    """Its head is called in a way of its own; `number` counts the iterations."""

    def __init__(self, odd: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.odd, self._number = odd, [0]
        self.adapter = Scale(1.0)

    @property
    def number(self) -> int:
        return self._number[0]

    def logits(self, inputs: Tensor) -> Any:
        self._number[0] += 1
        # one whose gradient is asked for is no weight
        return self.odd(self, inputs.clone().requires_grad_())


def without_gradient(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        features = model.extract_feat(x)
    return model.bbox_head(features)


def a_part_without_gradient(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        features = model.extract_feat(x)
    return model.bbox_head(features.detach().view(3, 2).view(2, 3))


def of_each_image(model: Any, x: Tensor) -> Any:
    features = model.extract_feat(x)
    return torch.cat([model.bbox_head(features[i : i + 1]) for i in range(len(x))])


@pytest.mark.parametrize(
    'odd',
    [
        lambda model, x: model.bbox_head(model.extract_feat(x).detach()),
        lambda model, x: model.bbox_head(model.extract_feat(x).view(3, 2).view(2, 3)),
        lambda model, x: model.bbox_head(model.extract_feat(x).t()).t(),
        of_each_image,
        without_gradient,
        a_part_without_gradient,
        lambda model, x: model.bbox_head(
            checkpoint(model.extract_feat, x, use_reentrant=True)
        ),
        lambda model, x: checkpoint(
            model.bbox_head, model.extract_feat(x), use_reentrant=False
        ),
    ],
    ids=[
        *('detached', 'a view', 'transposed', 'of each image', 'without gradient'),
        *('a part without gradient', 'a checkpoint', 'another checkpoint'),
    ],
)
def test_parts_of_what_a_call_returned_are_the_teachers(odd: Any) -> None:
    with distilled(OddToy(odd), OTHERS) as distiller:
        for _ in range(3):
            assert step(distiller) == RIGHT
    # the logits need the features
    terms = dict(features=None, logits=TERMS['logits'])
    with distilled(OddToy(odd), OTHERS, terms=terms) as distiller:
        for _ in range(3):
            assert step(distiller) == dict(logits=RIGHT['logits'])


def test_a_part_of_nothing_is_the_same_for_both() -> None:
    class Some(Toy):
        rows = 2

        def logits(self, inputs: Tensor) -> Any:
            features = self.extract_feat(inputs[: self.rows])
            return self.bbox_head(features.view(-1, 3))

    class Total(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
            return (student - teacher).abs().sum()

    student, total = Some(), dict(type=Total)
    terms = dict(
        features=dict(total, _delete_=True), logits=dict(total, site='bbox_head')
    )
    with distilled(student, OTHERS, terms=terms) as distiller:
        for student.rows in (2, 1, 0, 2):
            count = student.rows * 3
            assert step(distiller) == dict(features=3 * count, logits=29 * count)


@pytest.mark.parametrize('place', ['backbone', 'bbox_head', 'relu'])
def test_a_backward_hook_changes_no_value(place: str) -> None:
    student = OddToy(lambda model, x: model.bbox_head(model.extract_feat(x)))
    student.relu = nn.ReLU()
    student.get_submodule(place).register_full_backward_hook(lambda *_: None)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == RIGHT


def test_a_frozen_adapter_is_the_teachers_own() -> None:
    def adapted(model: Any, x: Tensor) -> Any:
        with torch.no_grad():
            features = model.adapter(model.extract_feat(x))
        return model.bbox_head(features)

    student = OddToy(adapted)
    student.backbone.requires_grad_(False)
    student.adapter.requires_grad_(False)
    with distilled(student, {**OTHERS, 'adapter': 11.0}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=5 * 11 * 7 - 2 * 3)
        assert distiller.labeled.found == ['adapter.forward']


def adapted(model: Any, x: Tensor) -> Any:
    features = model.extract_feat(x)
    return model.bbox_head(model.adapter(features) if model.number > 1 else features)


def changed(model: Any, x: Tensor) -> Any:
    features = model.extract_feat(x)
    return model.bbox_head(features.mul_(2) if model.number > 1 else features)


class InPlaceBackbone(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach().mul_(2))


AFTERWARDS = (
    'bbox_head.forward: its argument x (2, 3) depends on weights, and was made by a '
    'function (MulBackward0)'
)


@pytest.mark.parametrize(
    ('odd', 'message'),
    [
        (
            lambda model, x: model.bbox_head(
                model.extract_feat(x) * 2 if model.number > 1 else model.extract_feat(x)
            ),
            AFTERWARDS,
        ),
        (adapted, AFTERWARDS),
        (
            changed,
            'extract_feat: a tensor (2, 3) that it returned was changed in place',
        ),
    ],
    ids=['a function', 'a module', 'in place'],
)
def test_what_begins_later_ends_the_run_then(odd: Any, message: str) -> None:
    with distilled(OddToy(odd), OTHERS) as distiller:
        assert step(distiller) == RIGHT
        with pytest.raises(RuntimeError, match=re.escape(message)) as error:
            step(distiller)
        assert str(error.value).endswith('It was not so in the first iteration.')


def test_a_module_that_is_used_later_may_be_named() -> None:
    with distilled(OddToy(adapted), OTHERS, seams=['adapter']) as distiller:
        for _ in range(3):
            assert step(distiller) == RIGHT


def test_an_argument_that_is_changed_in_place_is_refused() -> None:
    student = Toy()
    student.backbone = InPlaceBackbone(2.0)
    message = (
        'extract_feat: a tensor (2, 3) that is given to a call is changed in place'
    )
    raised = pytest.raises(RuntimeError, match=re.escape(message))
    with distilled(student, OTHERS) as distiller, raised:
        step(distiller)
    # between two calls that are given it
    student = OddToy(lambda model, x: model.between(model.extract_feat(x), x))
    student.between = lambda y, x: student.bbox_head(y) + 0 * x.detach().mul_(2).sum()
    message = 'between two recorded calls: a tensor (2, 3) that is given to a call is'
    raised = pytest.raises(RuntimeError, match=re.escape(message))
    with distilled(student, OTHERS) as distiller, raised:
        step(distiller)


def test_targets_without_gradient_are_not_repeated() -> None:
    def sampling(model: Any, x: Tensor) -> Any:
        with torch.no_grad():
            targets = model.bbox_head(model.extract_feat(x) + 1)
        return model.bbox_head(model.extract_feat(x)) + 0 * targets

    with distilled(OddToy(sampling), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == RIGHT


def test_features_that_a_part_without_gradient_left_at_another_are_the_teachers() -> (
    None
):
    class Left(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.left + 0 * x)

    def leaving(model: Any, x: Tensor) -> Any:
        with torch.no_grad():
            model.bbox_head.left = model.extract_feat(x)
        return model.bbox_head(x)

    student = OddToy(leaving)
    student.bbox_head = Left(3.0)
    with distilled(student, OTHERS) as distiller:
        for _ in range(3):
            assert step(distiller) == RIGHT


def test_a_pass_without_gradient_has_all_its_calls() -> None:
    student = OddToy(lambda model, x: model.bbox_head(model.extract_feat(x)))
    # the backbone is called inside of another seam
    with distilled(student, OTHERS, seams=['backbone']) as distiller:
        assert step(distiller) == RIGHT
        with torch.no_grad():
            assert step(distiller) == RIGHT


def test_what_is_computed_inside_of_a_seam_needs_no_seam() -> None:
    class Head(Scale):
        def __init__(self) -> None:
            super().__init__(3.0)
            self.part = Scale(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.part(super().forward(x) + 0)

    student = OddToy(lambda model, x: model.bbox_head(model.extract_feat(x)))
    student.bbox_head = Head()
    # its part is a seam too, and is given what the head computes
    with distilled(student, OTHERS, seams=['bbox_head.part']) as distiller:
        for _ in range(3):
            assert step(distiller) == RIGHT
