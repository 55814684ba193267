"""What a teacher cannot repeat ends the first iteration, before a step."""

from __future__ import annotations

import re
import types
import weakref
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest
import torch
from helpers import Scale, only
from mmengine.structures import InstanceData
from torch import Tensor, nn
from toys import OTHERS, Toy, distilled, step

CANNOT = 'self_distill: the teacher cannot repeat what this model does.\n  '


class BetweenToy(Toy):
    """A function changes what one seam returned, and another takes."""

    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__()
        self.between = between
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def logits(self, inputs: Tensor) -> Any:
        return self.bbox_head(self.between(self, self.extract_feat(inputs)))


class KeywordHead(Scale):
    def forward(self, x: Tensor, *, extra: Any = None) -> Tensor:  # type: ignore[override]
        return super().forward(x if extra is None else x + extra['more'][1])


class KeywordToy(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = KeywordHead(3.0)

    def logits(self, inputs: Tensor) -> Any:
        x = self.extract_feat(inputs)
        return self.bbox_head(x, extra=dict(more=[x, torch.cat([x[:1], x[1:]])]))


def refused(student: nn.Module, message: str, **settings: Any) -> None:
    """Check that the first iteration fails, and leaves nothing behind."""
    before = [dict(vars(module)) for module in student.modules()]
    with distilled(student, {}, **settings) as distiller:
        forward = vars(student)['forward']
        with pytest.raises(RuntimeError, match=re.escape(message)):
            step(distiller)
        assert vars(student)['forward'] is forward
        # as long as it is not mended, it fails
        with pytest.raises(RuntimeError, match=re.escape(message)):
            step(distiller)
        assert distiller.computed == 0
    for module, attributes in zip(student.modules(), before):
        assert vars(module) == attributes


NAME_IT = (
    "between two recorded calls: the teacher would be given the student's. Put that "
    'computation into a module of its own, or into a method that is named as a seam: '
    "seams=['path.of.the.method']"
)


@pytest.mark.parametrize(
    ('between', 'shape', 'function'),
    [
        (lambda model, x: x * 2, (2, 3), 'MulBackward0'),
        (lambda model, x: torch.cat([x, x]), (4, 3), 'CatBackward0'),
        (lambda model, x: x.detach() * model.scale, (2, 3), 'MulBackward0'),
        (
            lambda model, x: x.detach() * model.scale.detach(),
            (2, 3),
            'without gradient',
        ),
        (
            lambda model, x: torch.ones(2, 3) * (model.scale * 1).detach(),
            (2, 3),
            'without gradient',
        ),
        (lambda model, x: torch.ones(2, 3) * model.fixed, (2, 3), 'without gradient'),
        (
            lambda model, x: torch.ones(2, 3).mul_(model.fixed),
            (2, 3),
            'without gradient',
        ),
    ],
    ids=['scaled', 'joined', 'a weight', 'cut', 'cut later', 'frozen', 'in place'],
)
def test_a_function_between_two_seams(between: Any, shape: Any, function: str) -> None:
    refused(
        BetweenToy(between),
        f'{CANNOT}bbox_head.forward: its argument x {shape} depends on weights, and '
        f'was made by a function ({function}) {NAME_IT}',
    )


class PassingHead(Scale):
    """Returns what it is given, too."""

    def forward(self, x: Tensor) -> Any:
        return dict(logits=super().forward(x), given=x)


class PassingToy(BetweenToy):
    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__(between)
        self.bbox_head = PassingHead(3.0)

    def logits(self, inputs: Tensor) -> Any:
        return super().logits(inputs)['logits']


def test_a_call_that_returns_what_it_is_given_has_not_made_it() -> None:
    refused(
        PassingToy(lambda model, x: x * 2),
        f'{CANNOT}bbox_head.forward: its argument x (2, 3) depends on weights, and '
        f'was made by a function (MulBackward0) {NAME_IT}',
    )
    # nor has one that comes later
    later = PassingToy(lambda model, x: x)
    later.logits = types.MethodType(twice, later)  # type: ignore[method-assign]
    refused(later, f'{CANNOT}bbox_head.forward: its argument x (2, 3) depends on')
    with distilled(PassingToy(lambda model, x: x), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller)['features'] == 3


@pytest.mark.parametrize(
    'passing', [nn.Identity(), nn.ReLU(inplace=True)], ids=['as it is', 'changed']
)
def test_a_module_that_passes_on_has_not_made_it(passing: nn.Module) -> None:
    student = BetweenToy(lambda model, x: model.passing(x * 2))
    student.passing = passing
    refused(student, 'its argument')
    student = BetweenToy(lambda model, x: model.passing(model.adapter(x)))
    student.passing, student.adapter = passing, Scale(1.0)
    if not isinstance(passing, nn.Identity):
        refused(student, f'{CANNOT}passing.forward: its argument input')
        return
    with distilled(student, {'adapter': 4.0}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=2 * 4 * 3 - 2 * 3)
        assert distiller.labeled.found == ['adapter.forward']


def twice(self: Any, inputs: Tensor) -> Any:
    made = self.extract_feat(inputs) * 2
    self.bbox_head(made)
    return self.bbox_head(made)['logits']


def test_a_function_of_a_keyword_in_containers() -> None:
    refused(
        KeywordToy(),
        f"{CANNOT}bbox_head.forward: its argument extra['more'][1] (2, 3) depends on "
        f'weights, and was made by a function (CatBackward0) {NAME_IT}',
    )


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_a_module_of_which_only_forward_is_called_is_not_seen() -> None:
    student = BetweenToy(lambda model, x: model.adapter.forward(x))
    student.adapter = Double()
    refused(student, f'{CANNOT}bbox_head.forward: its argument x (2, 3) depends on')
    with distilled(student, OTHERS, seams=['adapter']) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=2 * 29)


def test_a_function_in_front_of_an_adapter() -> None:
    student = BetweenToy(lambda model, x: model.adapter(x * 2))
    student.adapter = Scale(1.0)
    refused(student, f'{CANNOT}adapter.forward: its argument x (2, 3) depends on')


class Opening(Scale):
    def __init__(self, take: Callable[[Any], Tensor]) -> None:
        super().__init__(3.0)
        self.take = take

    def forward(self, hidden: Any) -> Tensor:
        return super().forward(self.take(hidden))


class Answering:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __call__(self) -> Tensor:
        return self.tensor


def in_array(tensor: Tensor) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = tensor
    return array


@pytest.mark.parametrize(
    ('hide', 'take'),
    [
        (Answering, lambda hidden: hidden()),
        (lambda x: x.clone, lambda hidden: hidden()),
        (weakref.ref, lambda hidden: hidden()),
        (in_array, lambda hidden: hidden[0]),
        (lambda x: {x: 1}, lambda hidden: next(iter(hidden))),
    ],
    ids=['an object', 'a method', 'a weak reference', 'an array', 'a key'],
)
def test_a_tensor_where_no_other_can_be_put(hide: Any, take: Any) -> None:
    student = BetweenToy(lambda model, x: hide(x))
    student.bbox_head = Opening(take)
    refused(student, 'bbox_head.forward: a tensor that depends on weights is hidden in')


def test_a_detached_tensor_is_known_where_no_other_can_be_put() -> None:
    student = BetweenToy(lambda model, x: Answering(x.detach()))
    student.bbox_head = Opening(lambda hidden: hidden())
    refused(student, 'bbox_head.forward: a tensor that depends on weights is hidden in')


class HeldToy(Toy):
    """What its features are in is changed before the head takes it."""

    def __init__(self, hold: Callable[[Tensor], Any], change: Any) -> None:
        super().__init__()
        self.bbox_head = HeldHead(3.0)
        self.hold, self.change = hold, change

    def extract_feat(self, inputs: Tensor) -> Any:
        return self.hold(self.backbone(inputs))

    def logits(self, inputs: Tensor) -> Any:
        held = self.extract_feat(inputs)
        self.change(held)
        return self.bbox_head(held)


class HeldHead(Scale):
    def forward(self, held: Any) -> Tensor:  # type: ignore[override]
        x = held['tensor'] if isinstance(held, dict) else held.tensor
        result = super().forward(x)
        if not isinstance(held, dict):
            # which the teacher's cannot have yet
            held.mean = result.mean(1)
        return result


def doubled(held: Any) -> None:
    held.tensor = held.tensor * 2


@pytest.mark.parametrize(
    ('hold', 'change'),
    [
        (lambda x: dict(tensor=x), lambda held: held.update(tensor=held['tensor'] * 2)),
        (lambda x: SimpleNamespace(tensor=x), doubled),
        (lambda x: InstanceData(tensor=x), doubled),
    ],
    ids=['dict', 'namespace', 'data element'],
)
def test_a_function_of_what_an_object_holds(hold: Any, change: Any) -> None:
    refused(
        HeldToy(hold, change),
        f"{CANNOT}bbox_head.forward: its argument held['tensor'] (2, 3) depends on "
        f'weights, and was made by a function (MulBackward0) {NAME_IT}',
    )
    # unchanged it is the teacher's
    with distilled(HeldToy(hold, lambda held: None), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=29)


def test_what_depends_on_no_weight_is_the_students() -> None:
    detached = BetweenToy(lambda model, x: x.detach() * 2)
    with distilled(detached, OTHERS) as distiller:
        assert step(distiller) == dict(features=3, logits=2 * 2 * 7 - 2 * 2 * 3)


class InPlaceToy(Toy):
    def logits(self, inputs: Tensor) -> Any:
        return super().logits(inputs).mul_(2)


@pytest.mark.parametrize(
    ('student', 'path'),
    [
        (InPlaceToy(), 'bbox_head.forward'),
        (BetweenToy(lambda model, x: x.mul_(2)), 'extract_feat'),
        (BetweenToy(lambda model, x: nn.functional.relu_(x)), 'extract_feat'),
    ],
    ids=['the last', 'in between', 'a function'],
)
def test_a_change_in_place_after_a_seam(student: Toy, path: str) -> None:
    refused(
        student,
        f'{CANNOT}{path}: a tensor (2, 3) that it returned was changed in place '
        "afterwards: the teacher's is not. Use the operation that returns a new "
        'tensor, inside of that call',
    )


class InPlaceHead(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


def test_a_change_in_place_inside_of_a_later_seam_is_repeated() -> None:
    student = Toy()
    student.bbox_head = InPlaceHead(3.0)
    with distilled(student, {}) as distiller:
        for _ in range(3):
            assert step(distiller) == dict(features=0, logits=0)
    for factors, gap in (({}, 0), (OTHERS, 2 * 5 - 2 * 2)):
        with distilled(student, factors) as distiller:
            # the features alone are active
            only(distiller.terms, 'logits').weight = 0.0
            for _ in range(3):
                assert step(distiller) == dict(features=gap, logits=0)
            assert distiller.labeled.mutating == {'bbox_head.forward'}


class LateInPlaceHead(InPlaceHead):
    in_place = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.in_place else x.clone())


def test_a_change_in_place_that_begins_later_is_repeated_too() -> None:
    student = Toy()
    student.bbox_head = LateInPlaceHead(3.0)
    with distilled(student, OTHERS) as distiller:
        only(distiller.terms, 'logits').weight = 0.0
        assert step(distiller)['features'] == 5 - 2
        student.bbox_head.in_place = True
        for _ in range(2):
            assert step(distiller)['features'] == 2 * 5 - 2 * 2


class ReluToy(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def logits(self, inputs: Tensor) -> Any:
        return self.bbox_head(self.relu(self.extract_feat(inputs)))


def test_a_module_that_changes_in_place_works_once_it_is_named() -> None:
    message = f'{CANNOT}extract_feat: a tensor (2, 3) that it returned was changed in'
    refused(ReluToy(), message)
    with distilled(ReluToy(), OTHERS, seams=['relu']) as distiller:
        for _ in range(2):
            # a third of the signs are negative
            found = step(distiller)
            assert found['features'] == pytest.approx((5 - 2) * 2 / 3)
            assert found['logits'] == pytest.approx((35 - 6) * 2 / 3)
    with distilled(ReluToy(), {}, seams=['relu']) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=0)


class FlagToy(Toy):
    """Its head returns more on one side than on the other."""

    def __init__(self, more: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.bbox_head = FlagHead(3.0, more)

    def logits(self, inputs: Tensor) -> Any:
        outputs = self.bbox_head(self.extract_feat(inputs))
        return outputs['x']


class FlagHead(Scale):
    def __init__(self, factor: float, more: Callable[[Tensor], Any]) -> None:
        super().__init__(factor)
        # one that a teacher is not given
        self.more, self.flag = more, SimpleNamespace(on=False)

    def forward(self, x: Tensor) -> Any:
        result = dict(x=super().forward(x))
        return {**result, **self.more(x)} if self.flag.on else result


@pytest.mark.parametrize(
    ('more', 'theirs'),
    [
        (lambda x: dict(y=x), ["Tensor at ['x']", "Tensor at ['y']"]),
        (lambda x: dict(x=[x]), ["Tensor at ['x'][0]"]),
        (lambda x: dict(x=None), []),
    ],
    ids=['one more', 'deeper', 'none'],
)
def test_outputs_of_another_structure(
    more: Callable[[Tensor], Any], theirs: list[str]
) -> None:
    message = (
        "The teacher's bbox_head.forward did not return what the student's did: the "
        f"""student ["Tensor at ['x']"], the teacher {theirs}."""
    )
    with distilled(FlagToy(more), {}) as distiller:
        assert step(distiller) == dict(features=0, logits=0)
        teacher: Any = distiller.teacher
        teacher.bbox_head.flag.on = True
        with pytest.raises(RuntimeError, match=re.escape(message)):
            step(distiller)
        teacher.bbox_head.flag.on = False
        assert step(distiller) == dict(features=0, logits=0)
