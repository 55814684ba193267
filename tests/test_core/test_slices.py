"""The teacher makes those calls that the active terms depend on, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Scale, only
from test_flow import AdaptedToy
from toys import OTHERS, TERMS, Gap, Toy, distilled, repeat, step

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.given import groups_of
from mmselfdistill.core.parts import own_parts
from mmselfdistill.core.recorder import record, slice_back
from mmselfdistill.families.plan import Call
from mmselfdistill.families.shared import seams


def runs(distiller: Distiller) -> tuple[int, ...]:
    """Return how often the parts of the teacher ran, and reset the count."""
    teacher: Any = distiller.teacher
    counts = tuple(part.runs for part in teacher.children())
    for part in teacher.children():
        part.runs = 0
    return counts


def test_with_features_alone_the_teachers_head_is_not_run() -> None:
    terms = dict(features=TERMS['features'])
    with distilled(Toy(), OTHERS, terms=terms) as distiller:
        runs(distiller)
        assert step(distiller) == dict(features=3)
        # tried, and computed
        assert runs(distiller) == (2, 0)
        for _ in range(2):
            assert step(distiller) == dict(features=3)
            assert runs(distiller) == (1, 0)


def test_logits_need_what_they_are_made_of() -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    terms = dict(features=None, logits=TERMS['logits'])
    with distilled(student, OTHERS, terms=terms) as distiller:
        runs(distiller)
        assert step(distiller) == dict(logits=29)
        assert runs(distiller) == (2, 2, 2)
        assert step(distiller) == dict(logits=29)
        assert runs(distiller) == (1, 1, 1)


def test_a_term_that_is_off_costs_nothing_but_is_tried_at_first() -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    late = dict(type='constant', begin=0.5)
    terms = dict(TERMS, logits=dict(TERMS['logits'], schedule=late))
    with distilled(student, OTHERS, terms=terms) as distiller:
        runs(distiller)
        assert step(distiller) == dict(features=3, logits=0)
        # all terms are tried: once the backbone for that, and once for the features
        assert runs(distiller) == (2, 1, 1)
        assert distiller.labeled.shapes == dict(features=['2x3'], logits=['2x3'])
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=0)
            assert runs(distiller) == (1, 0, 0)
        distiller.progress = 0.6
        assert step(distiller) == dict(features=3, logits=29)
        assert runs(distiller) == (1, 1, 1)
        only(distiller.terms, 'features').weight = 0.0
        assert step(distiller) == dict(features=0, logits=29)
        assert runs(distiller) == (1, 1, 1)
        distiller.progress = 0.4
        runs(distiller)
        assert step(distiller) == dict(features=0, logits=0)
        assert runs(distiller) == (0, 0, 0)
        assert (distiller.forwards, distiller.computed) == (6, 5)


class Wrong(Gap):
    def forward(self, student: torch.Tensor, teacher: torch.Tensor, **_: Any) -> Any:
        return torch.ones(3, 2) @ student.sum(1)[None]


def test_a_term_that_is_off_fails_in_the_first_iteration() -> None:
    late = dict(type='constant', begin=0.5)
    terms = dict(TERMS, logits=dict(type=Wrong, site='bbox_head', schedule=late))
    message = r"^terms\.logits: Wrong fails at the site 'bbox_head': RuntimeError: mat1"
    with distilled(Toy(), OTHERS, terms=terms) as distiller:
        with pytest.raises(ValueError, match=message):
            step(distiller)
        assert distiller.computed == 0


@pytest.mark.parametrize(
    'value',
    [
        # a confident teacher may come later; equal sides may give 0 / 0
        lambda s, t: (s[t > 50] - t[t > 50]).sum() if t.max() > 50 else s.new_zeros(()),
        lambda s, t: (s - t).abs().sum() / (s - t).abs().sum().detach(),
    ],
    ids=['unsure', 'balanced'],
)
def test_a_loss_may_have_nothing_to_say_yet(value: Any) -> None:
    class Own(Gap):
        def forward(self, student: torch.Tensor, teacher: Any, **_: Any) -> Any:
            return value(student, teacher)

    late = dict(type='constant', begin=0.5)
    terms = dict(TERMS, logits=dict(type=Own, site='bbox_head', schedule=late))
    with distilled(Toy(), {}, terms=terms) as distiller:
        assert step(distiller)['logits'] == 0


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (
            lambda s: float(s.mean()),
            'fails at the site .*TypeError: the loss returned no',
        ),
        (lambda s: s.sum() * torch.inf * 0, 'Own is NaN at the site'),
        (
            lambda s: s.detach().sum(),
            "what Own returns at the site 'bbox_head' has no gr",
        ),
    ],
    ids=['float', 'nan', 'detached'],
)
def test_what_a_loss_returns_is_looked_at(value: Any, message: str) -> None:
    class Own(Gap):
        def forward(self, student: torch.Tensor, teacher: Any, **_: Any) -> Any:
            return value(student - teacher + 1)

    terms = dict(TERMS, logits=dict(type=Own, site='bbox_head'))
    refused = pytest.raises(ValueError, match=rf'^terms\.logits: .*{message}')
    with distilled(Toy(), OTHERS, terms=terms) as distiller, refused:
        step(distiller)


def call(path: str, depth: int, given: Any, output: Any) -> Call:
    made = Call(path, depth, (given,), {})
    made.begin()
    made.end(output)
    return made


def test_a_slice_goes_back_through_all_that_made_it() -> None:
    # no two share memory
    a, b, c, d, e = (torch.tensor(number) for number in range(5))
    calls = [
        call('image', 0, a, b),
        call('unused', 0, b, c),
        call('neck', 0, dict(x=[b]), d),
        call('inner', 1, b, e),
        call('head', 0, d, a),
        call('masks', 0, e, c),
    ]
    groups = groups_of(calls)
    assert [[each.path for each in group] for group in groups] == [
        ['image'],
        ['unused'],
        ['neck', 'inner'],
        ['head'],
        ['masks'],
    ]

    def sliced(*paths: str, always: tuple[str, ...] = ()) -> list[str]:
        return [group[0].path for group in slice_back(calls, paths, always)]

    assert sliced('image') == ['image']
    assert sliced('head') == ['image', 'neck', 'head']
    # what came out of a call within another
    assert sliced('masks') == ['image', 'neck', 'masks']
    assert sliced('inner') == ['image', 'neck']
    assert sliced('image', always=('unused',)) == ['image', 'unused']
    assert sliced('other') == sliced() == []
    assert sliced('masks', 'head', 'unused') == [group[0].path for group in groups]


def test_parameters_are_paired_but_for_those_that_are_shared() -> None:
    student, teacher = (AdaptedToy(adapter=Scale(1.0)) for _ in '12')
    teacher.adapter = Scale(1.0)
    student.register_buffer('shift', torch.zeros(1))
    pairs = own_parts(student, teacher)
    assert [id(ours) for ours, _ in pairs] == [id(p) for p in student.parameters()]
    assert [id(theirs) for _, theirs in pairs] == [id(p) for p in teacher.parameters()]
    for shared in (['adapter'], ['adapter.factor']):
        rest = own_parts(student, teacher, shared)
        assert [id(ours) for ours, _ in rest] == [id(ours) for ours, _ in pairs[:2]]
    # not by the begin of a name
    assert len(own_parts(student, teacher, ['adapt', 'bbox'])) == 3


def test_what_is_shared_stays_the_students_in_a_replay() -> None:
    student, teacher = Toy(), Toy()
    ours, theirs = student.bbox_head.factor, teacher.bbox_head.factor
    paths = seams('backbone.forward')
    with record(student, paths) as calls:
        student.backbone(ours)
    for own, given in (({}, ours), ({id(ours): theirs}, theirs)):
        (made,) = repeat(teacher, calls, paths, own)
        assert made.args[0] is given
