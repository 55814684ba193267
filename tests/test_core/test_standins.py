"""Calls of frozen modules, answered in the teacher: toys of every kind, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from helpers import Scale, added
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import Toy, distilled, set_factors, signs, step

from mmselfdistill.core.distiller import Distiller

ONCE = 'Run once, since frozen and the same in student and teacher: '
TWICE = 'Frozen, but run by the teacher too: '
INPUTS = (
    'it is given something else than in the student, or what it returns is random or '
    'changed in place.'
)
Use = Callable[[Any, Tensor], Tensor]
OTHERS = {'backbone.scale': 5.0, 'bbox_head': 7.0}


class Stem(nn.Module):
    """Multiplies by a number that does not train."""

    def __init__(self, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        # a number of its own would be one that a call changes
        self.log = SimpleNamespace(runs=0)

    def forward(self, x: Tensor) -> Any:
        self.log.runs += 1
        return x * self.factor


class Body(nn.Module):
    """A frozen stem, and a scale by 2 that trains."""

    def __init__(self, stem: nn.Module, use: Use) -> None:
        super().__init__()
        self.stem = stem.requires_grad_(False)
        self.relu = nn.ReLU(inplace=True)
        self.scale = Scale(2.0)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.scale(self.use(self, x))


class Branches(nn.Module):
    """Returns tensors in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Stem()

    def forward(self, x: Tensor, *, more: bool = True) -> dict[str, Any]:
        y = self.scale(x)
        return dict(x=x, pair=(y, [2 * y]), name='stem', more=more)


class Noise(Stem):
    """Draws numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.rand(1)


def toy(stem: nn.Module, use: Use) -> Any:
    student: Any = Toy()
    student.backbone = Body(stem, use)
    return student


def runs(distiller: Distiller) -> int:
    """Return how often the teacher ran its stem, and forget it."""
    assert distiller.teacher is not None
    found = 0
    for module in distiller.teacher.get_submodule('backbone.stem').modules():
        if hasattr(module, 'log'):
            found, module.log.runs = found + module.log.runs, 0
    return found


def said(distiller: Distiller) -> str:
    return distiller.labeled.reuse.describe()


def in_place(body: Body, x: Tensor) -> Tensor:
    return body.relu(body.stem(x))


def in_place_on_a_copy(body: Body, x: Tensor) -> Tensor:
    return body.relu(body.stem(x) * 1)


def in_containers(body: Body, x: Tensor) -> Tensor:
    found = body.stem(x, more=False)
    found['new'] = 1
    return found['pair'][1][0] - found['pair'][0]


def thrice(body: Body, x: Tensor) -> Tensor:
    return body.stem(body.stem(x)) + body.stem(x)


def without_gradient(body: Body, x: Tensor) -> Tensor:
    with torch.no_grad():
        return body.stem(x)


def checkpointed(body: Body, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(body.stem, x, use_reentrant=True)
    return found


def passed_on(body: Body, x: Tensor) -> Tensor:
    return nn.Identity()(body.stem(x))


# how often the stem runs in an iteration, and the mean size of what it makes
GOOD: dict[str, tuple[Callable[[], nn.Module], Use, int, float]] = {
    'in place': (lambda: Stem(), in_place, 1, 2.0),
    'in containers': (Branches, in_containers, 1, 3.0),
    'called three times': (lambda: Stem(), thrice, 3, 12.0),
    'without gradient': (lambda: Stem(), without_gradient, 1, 3.0),
    'checkpointed': (lambda: Stem(), checkpointed, 1, 3.0),
    'passed on': (lambda: Stem(), passed_on, 1, 3.0),
    'before an operation': (lambda: Stem(), in_place_on_a_copy, 1, 2.0),
    'with dropout that is off': (
        lambda: nn.Sequential(Stem(), nn.Dropout(0.5).eval()),
        lambda body, x: body.stem(x),
        1,
        3.0,
    ),
}


def gaps(size: float) -> dict[str, float]:
    # features by 2 against 5; logits by 2 * 3 against 5 * 7
    return dict(features=3 * size, logits=29 * size)


@pytest.mark.parametrize('case', GOOD)
def test_a_frozen_module_runs_once(case: str) -> None:
    make, use, number, size = GOOD[case]
    with distilled(toy(make(), use), OTHERS) as distiller:
        for iteration in range(3):
            assert step(distiller) == gaps(size)
            assert runs(distiller) == (number if iteration == 0 else 0)
        assert said(distiller).startswith(f'{ONCE}backbone.stem')


def changed_by_a_module(body: Body, x: Tensor) -> Tensor:
    y = body.stem(x)
    body.relu(y)
    return y


def changed_by_an_operation(body: Body, x: Tensor) -> Tensor:
    y = body.stem(x)
    y += 0
    return y


def given_something_new(body: Body, x: Tensor) -> Tensor:
    return body.stem(x * 1)


class Writing(Stem):
    """Writes into the list that it is given."""

    def forward(self, x: Tensor, notes: list[int]) -> Tensor:  # type: ignore[override]
        notes.append(2)
        return super().forward(x)


class Holding(Stem):
    """Holds what it was given, for others to read."""

    def forward(self, x: Tensor) -> Tensor:
        self.held = (x,)
        return super().forward(x)


def held(body: Body, x: Tensor) -> Tensor:
    return body.stem(x) + body.stem.held[0]


def noted(body: Body, x: Tensor) -> Tensor:
    notes = [1]
    return body.stem(x, notes) * len(notes)


# a change behind the stem is not known of what the teacher is given in its place
BAD: dict[str, tuple[Callable[[], nn.Module], Use, float]] = {
    'changed by a module': (lambda: Stem(), changed_by_a_module, 2.0),
    'changed by an operation': (lambda: Stem(), changed_by_an_operation, 3.0),
    'given something new': (lambda: Stem(), given_something_new, 3.0),
    'writes': (lambda: Writing(), noted, 6.0),
    'holds': (lambda: Holding(), held, 4.0),
    'random': (lambda: Noise(), lambda body, x: body.stem(x), 3.0),
}


@pytest.mark.parametrize('case', BAD)
def test_what_would_not_be_the_same_is_run(case: str) -> None:
    make, use, size = BAD[case]
    with distilled(toy(make(), use), OTHERS) as distiller:
        for _ in range(3):
            assert step(distiller) == gaps(size)
            assert runs(distiller) >= 1
        assert said(distiller) in (f'{TWICE}{INPUTS}', '')


def test_a_number_that_a_frozen_module_holds_is_not_old() -> None:
    class Counting(Stem):
        def forward(self, x: Tensor) -> Tensor:
            self.size = len(x)
            return super().forward(x)

    def use(body: Body, x: Tensor) -> Tensor:
        return body.stem(x) * body.stem.size

    with distilled(toy(Counting(), use), OTHERS) as distiller:
        ran = []
        for rows in (2, 2, 2, 1, 1, 1):
            losses = added(distiller.student(signs()[:rows], mode='loss'))
            assert float(losses['features'].detach()) == gaps(3.0 * rows)['features']
            ran.append(runs(distiller))
            if len(ran) == 1:
                # before its first call it held none
                assert said(distiller) == ''
                distiller.prove_again()
        # proven, reused, noticed, proven, reused
        assert ran[1:] == [1, 0, 1, 1, 0]


@pytest.mark.parametrize('rate', [0.0, 0.5])
def test_dropout_in_training_is_frozen_only_without_a_rate(rate: float) -> None:
    stem = nn.Sequential(Stem(), nn.Dropout(rate))
    with distilled(toy(stem, lambda body, x: body.stem(x)), OTHERS) as distiller:
        for _ in range(2):
            step(distiller)
        # the scale before it is answered by itself
        expected = 'backbone.stem.0' if rate else 'backbone.stem'
        assert said(distiller) == f'{ONCE}{expected}.'


def test_a_rate_that_is_raised_is_noticed() -> None:
    stem = nn.Sequential(Stem(), nn.Dropout(0.0))
    with distilled(toy(stem, lambda body, x: body.stem(x)), OTHERS) as distiller:
        step(distiller)
        assert said(distiller) == f'{ONCE}backbone.stem.'
        stem[1].p = 1.0
        for _ in range(2):
            # the student's stem is 0 by now, its teacher's is not
            assert step(distiller)['features'] == 3.0 * 5
        assert said(distiller) == f'{ONCE}backbone.stem.0.'


@pytest.mark.parametrize('quietly', [True, False])
def test_another_use_in_a_later_iteration_is_noticed(quietly: bool) -> None:
    changed = []

    def use(body: Body, x: Tensor) -> Tensor:
        y = body.stem(x)
        z = body.square(y)
        if changed:
            # of a tensor without storage, the first fails, and the second does not
            return y * 1 if quietly else y + z
        return z

    student = toy(Stem(), use)
    student.backbone.square = nn.Softshrink(0.0)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller) == step(distiller) == gaps(3.0)
        assert distiller.labeled.reuse.paths == {
            'backbone.stem': False,
            'backbone.square': True,
        }
        changed.append(1)
        runs(distiller)
        for _ in range(2):
            assert step(distiller) == gaps(3.0 if quietly else 6.0)
            assert runs(distiller) == 1
        assert said(distiller) == (
            f'{TWICE}the model uses its output in another way than in the first '
            'iteration.'
        )


def test_the_students_tensors_are_not_changed() -> None:
    kept: list[Tensor] = []

    def use(body: Body, x: Tensor) -> Tensor:
        y = body.stem(x)
        kept.append(y)
        # in the teacher alone
        return y.mul_(2) if not body.scale.factor.requires_grad else y * 2

    with distilled(toy(Stem(), use), OTHERS) as distiller:
        for _ in range(2):
            assert step(distiller) == gaps(6.0)
            student, *_ = kept
            assert torch.equal(student, 3 * signs())
            kept.clear()
        assert said(distiller).startswith(TWICE)


def test_gradients_go_to_what_trains_alone() -> None:
    student = toy(Stem(), in_place)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            student.zero_grad()
            terms = added(distiller.student(signs(), mode='loss'))
            terms['features'].backward()
    # d/ds of mean |5 y - s y| is minus the mean of |y|
    assert float(student.backbone.scale.factor.grad) == -2.0
    assert student.backbone.stem.factor.grad is None


def test_a_change_of_what_is_reused_is_noticed_and_no_other() -> None:
    student = toy(Stem(), in_place)
    with distilled(student, OTHERS) as distiller:
        step(distiller)
        assert distiller.teacher is not None
        set_factors(distiller.teacher, {'backbone.scale': 9.0})
        # what is not reused may change
        assert step(distiller)['features'] == 14.0
        assert runs(distiller) == 1
        set_factors(distiller.teacher, {'backbone.stem': 4.0})
        # relu of 4 x by 9, and of 3 x by 2
        assert step(distiller)['features'] == 20.0
        assert runs(distiller) == 1
