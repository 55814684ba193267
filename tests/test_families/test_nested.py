"""Models that train another one inside: everything is that one's, under its path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

import pytest
import torch

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import find_plan

SOFT_TEACHER = (
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
)
QDTRACK = (
    'mmdet::qdtrack/'
    'qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py'
)
INSIDE = {SOFT_TEACHER: 'student', QDTRACK: 'detector'}


@pytest.fixture(scope='module', params=INSIDE)
def seen(
    request: pytest.FixtureRequest,
    zoo: Callable[..., Any],
    iterate: Callable[..., Any],
) -> tuple[str, Any]:
    model, batch = zoo(request.param)
    return INSIDE[request.param], iterate(model, batch)


def test_it_is_recorded_as_the_inner_model_under_its_path(
    seen: tuple[str, Any],
) -> None:
    path, iteration = seen
    inner, plan = find_plan(iteration.model.get_submodule(path)), iteration.plan
    assert inner.name == 'two-stage detector' and inner.inner == ''
    assert plan.name == f'two-stage detector in {path}'
    assert plan.inner == path
    lifted = [replace(seam, path=f'{path}.{seam.path}') for seam in inner.seams]
    assert [*plan.seams] == lifted
    assert [site.name for site in plan.sites] == [site.name for site in inner.sites]
    assert default_terms(plan) == default_terms(inner)
    for site, within in zip(plan.sites, inner.sites):
        assert site.seams == tuple(f'{path}.{seam}' for seam in within.seams)
        assert (site.weigh is None) == (within.weigh is None)


def test_sites_are_read_from_every_call_of_the_inner_model(
    seen: tuple[str, Any],
) -> None:
    path, iteration = seen
    calls = iteration.of(f'{path}.roi_head._bbox_forward')
    # of labelled images; for classes, then for boxes, of the others
    assert len(calls) == (3 if path == 'student' else 1)
    pairs = iteration.read('logits')
    assert len(pairs) == len(calls)
    for pair, (ours, theirs) in zip(pairs, calls):
        assert torch.equal(pair.student, ours.output['cls_score'])
        assert torch.equal(pair.teacher, theirs.output['cls_score'])
        assert not torch.equal(pair.student, pair.teacher)


def test_embeddings_around_the_detector_are_named(seen: tuple[str, Any]) -> None:
    path, iteration = seen
    skipped = iteration.plan.skipped
    assert ('track_head' in skipped) == (path == 'detector')
    assert "the student's" in skipped['rpn_head']


def test_the_semi_supervised_models_own_teacher_is_not_ours(
    zoo: Callable[..., Any],
) -> None:
    model, batch = zoo(SOFT_TEACHER)
    distiller = build_distiller(model)
    distiller.teacher = make_teacher(model)
    with torch.no_grad():
        for parameter in distiller.teacher.get_submodule('teacher').parameters():
            parameter.add_(1.0)
    distiller.attach()
    losses = model(**batch, mode='loss')
    terms = {k: float(v) for k, v in losses.items() if k.startswith('loss_sd_')}
    assert terms == {f'loss_sd_{term.name}': 0.0 for term in distiller.terms}
