"""The first iteration: what would go wrong later is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn
from toys import OTHERS, TERMS, Gap, Toy, distilled, step

from mmselfdistill.families import (
    FAMILIES,
    AnyModel,
    Plan,
    Reading,
    Seam,
    Site,
    find_plan,
)


def head(side: Any) -> Any:
    return [Reading(call.output) for call in side.of('bbox_head.forward')]


def structure(side: Any) -> Any:
    return side.of('bbox_head.forward')[0].output['logits']


def generator(side: Any) -> Any:
    return (each for each in head(side))


@pytest.mark.parametrize(
    ('read', 'seams', 'message'),
    [
        (
            head,
            ('extract_feat',),
            r"^terms\.mine: the site 'mine' reads calls of other seams than it names, "
            r"\('extract_feat',\): without other terms it would have 0 tensors, not 1",
        ),
        (
            lambda side: [Reading(side.of('bbox_head.forward')[0].output)],
            ('extract_feat',),
            r"^terms\.mine: the site 'mine' reads calls of other seams .* 0 tensors",
        ),
        (
            structure,
            ('bbox_head.forward',),
            r"^terms\.mine: the site 'mine' cannot be read of what bbox_head\.forward "
            r'\(Tensor\) returned: IndexError: .*terms=dict\(mine=None\)',
        ),
        (
            lambda side: [],
            ('bbox_head.forward',),
            r"^terms\.mine: the site 'mine' gave no tensor .* What it reads returned: "
            r'bbox_head\.forward \[2, 3\]$',
        ),
        (
            generator,
            ('bbox_head.forward',),
            r"^terms\.mine: the site 'mine' cannot be read .*TypeError: .*generator",
        ),
        (
            head,
            ('bbox_hed.forward',),
            r"^terms: the site 'mine' reads 'bbox_hed\.forward', and Toy has no such",
        ),
    ],
    ids=[
        'other seams',
        'the first of others',
        'structure',
        'nothing',
        'generator',
        'misspelt',
    ],
)
def test_a_site_that_cannot_be_read_is_named(
    read: Any, seams: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnSite(AnyModel):
        @classmethod
        def plan(cls, model: nn.Module) -> Plan:
            plan = AnyModel.plan(model)
            return replace(plan, sites=(*plan.sites, Site('mine', seams, read)))

    monkeypatch.setattr(f'{find_plan.__module__}.FAMILIES', [OwnSite, *FAMILIES])
    terms = dict(TERMS, mine=dict(type=Gap, site='mine'))
    with pytest.raises(ValueError, match=message), distilled(
        Toy(), OTHERS, terms=terms
    ) as distiller:
        step(distiller)


def test_a_site_may_read_a_module_by_its_second_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Twice(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.same = self.bbox_head

    class OwnSite(AnyModel):
        @classmethod
        def plan(cls, model: nn.Module) -> Plan:
            plan = AnyModel.plan(model)
            path = 'same.forward'
            site = Site(
                'mine', (path,), lambda side: [Reading(c.output) for c in side.of(path)]
            )
            seams = *plan.seams, Seam(path)
            return replace(plan, sites=(*plan.sites, site), seams=seams)

    monkeypatch.setattr(f'{find_plan.__module__}.FAMILIES', [OwnSite, *FAMILIES])
    terms = dict(features=TERMS['features'], mine=dict(type=Gap, site='mine'))
    with distilled(Twice(), OTHERS, terms=terms) as distiller:
        # features by 2 and 5, logits by 6 and 35
        assert step(distiller)['mine'] == 29
