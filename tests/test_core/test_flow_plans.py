"""What a plan says of an argument decides whether the teacher needs its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import Scale
from mmengine.structures import InstanceData
from torch import Tensor, nn
from toys import OTHERS, Gap, set_factors, step

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.terms import resolve_terms
from mmselfdistill.families.plan import Plan, Seam
from mmselfdistill.families.shared import outputs_of


class QueryHead(Scale):
    """Takes queries besides features, and adds what the model noted."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.noted: dict[str, Any] = {}

    def forward(self, x: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + query) + sum(self.noted.values())


class QueryToy(nn.Module):
    """A function makes queries of features, or something that is noted."""

    def __init__(self, *, noting: bool = False, same: bool = False) -> None:
        super().__init__()
        self.backbone, self.bbox_head = Scale(2.0), QueryHead(3.0)
        self.noting, self.same = noting, same

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = '') -> Any:
        x = self.backbone(inputs)
        if self.noting:
            self.bbox_head.noted.update(shift=x * 2)
        query = x if self.same else inputs if self.noting else x * 2
        logits = self.bbox_head(x, query=query)
        return dict(loss_cls=self.loss_of(logits))

    def loss_of(self, logits: Tensor) -> Tensor:
        return (logits * 2).square().mean()


def terms_of(student: QueryToy, *seams: Seam) -> list[dict[str, float]]:
    """Return the terms of two iterations."""
    site = outputs_of('bbox_head.forward', 'logits', dict(type=Gap))
    plan = Plan('toy', (Seam('backbone.forward'), *seams), (site,))
    distiller = Distiller(student, plan, resolve_terms(student, plan, None, None))
    distiller.teacher = make_teacher(student)
    set_factors(distiller.teacher, OTHERS)
    distiller.attach()
    try:
        return [step(distiller) for _ in range(2)]
    finally:
        distiller.detach()


@pytest.mark.parametrize(
    ('student', 'seam', 'argument'),
    [
        (QueryToy(), Seam('bbox_head.forward'), 'query'),
        (QueryToy(), Seam('bbox_head.forward', keep=('x',)), 'query'),
    ],
    ids=['query', 'another is kept'],
)
def test_what_a_plan_does_not_keep_is_refused(
    student: QueryToy, seam: Seam, argument: str
) -> None:
    message = (
        f'bbox_head.forward: its argument {argument} (2, 3) depends on weights, and '
        'was made by a function (MulBackward0)'
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        terms_of(student, seam)


def test_what_is_noted_at_a_module_and_has_no_version_is_refused() -> None:
    message = r"no attribute 'noted'\. The student has a tensor there of which the teac"
    with pytest.raises(RuntimeError, match=message):
        terms_of(QueryToy(noting=True), Seam('bbox_head.forward'))


class Positives(Scale):
    """A head whose positives another method gathers from what the model noted."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.noted: dict[str, Any] = dict(branch=nn.Identity())

    def gather(self) -> list[InstanceData]:
        return [InstanceData(kernels=self.noted['kernels'][self.noted['index']])]


class MaskDetector(nn.Module):
    """Kernels of the positives, which its loss chooses, make masks."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.bbox_head = Scale(1.0), Positives(3.0)

    def make_masks(self, positives: list[InstanceData]) -> Tensor:
        return torch.cat([each.kernels for each in positives]) + 1

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = '') -> Any:
        kernels = self.bbox_head(self.backbone(inputs))
        self.bbox_head.noted.update(kernels=kernels, index=torch.tensor([1]))
        return dict(loss=self.make_masks(self.bbox_head.gather()).sum())


def test_what_the_model_notes_of_a_call_is_the_teachers() -> None:
    student = MaskDetector()
    seams = [Seam(f'bbox_head.{name}') for name in ('forward', 'gather')]
    site = outputs_of('make_masks', 'masks', dict(type=Gap))
    plan = Plan('toy', (*seams, Seam('make_masks')), (site,))
    distiller = Distiller(student, plan, resolve_terms(student, plan, None, None))
    distiller.teacher = teacher = make_teacher(student)
    own = teacher.bbox_head.noted['branch']
    with torch.no_grad():
        teacher.bbox_head.factor.fill_(7.0)
    distiller.attach()
    found = [step(distiller) for _ in range(2)]
    distiller.detach()
    # the student's choice of positives, the teacher's kernels of them
    assert found == [dict(masks=7 - 3)] * 2
    assert teacher.bbox_head.noted['branch'] is own


def test_what_a_plan_keeps_is_the_students() -> None:
    kept = Seam('bbox_head.forward', keep=('query',))
    # the student's query is 4
    expected = dict(logits=7 * (5 + 4) - 3 * (2 + 4))
    assert terms_of(QueryToy(), kept) == [expected] * 2


class Passing(QueryHead):
    """Returns its queries too, as a decoder returns the points at which it began."""

    def forward(self, x: Tensor, query: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, query), query


def test_a_call_may_return_what_a_plan_keeps() -> None:
    student: Any = QueryToy()
    student.bbox_head = Passing(3.0)
    student.loss_of = lambda outputs: outputs[0].square().mean()
    kept = Seam('bbox_head.forward', keep=('query',))
    # the mean of two pairs: the second one is the same query
    expected = dict(logits=(7 * (5 + 4) - 3 * (2 + 4)) / 2)
    assert terms_of(student, kept) == [expected] * 2


def test_what_a_call_returned_is_the_teachers_though_it_is_kept() -> None:
    kept = Seam('bbox_head.forward', keep=('query',))
    expected = dict(logits=7 * (5 + 5) - 3 * (2 + 2))
    assert terms_of(QueryToy(same=True), kept) == [expected] * 2


def test_a_call_that_is_only_read_may_be_given_anything() -> None:
    seams = [
        Seam('bbox_head.forward', keep=('query',)),
        Seam('loss_of', repeat=False),
    ]
    assert terms_of(QueryToy(), *seams) == terms_of(QueryToy(), seams[0])
