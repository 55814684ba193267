"""A side is read by itself: nothing of the other model is needed for it."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from mmselfdistill.core.pairs import pair
from mmselfdistill.families import Plan, Reading, Rows, Side, Site, outputs_of
from mmselfdistill.families.plan import Call

# RepPoints has a learned scale in what decodes its boxes, RTMDet convolves masks by
# itself, PointRend looks at the labels of points
MODELS = (
    'gfl_r18_fpn_50e_digits',
    'mask-rcnn_r18_fpn_50e_digits',
    'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64',
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::solo/decoupled-solo-light_r50_fpn_3x_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
)


@pytest.fixture(params=MODELS)
def seen(
    request: pytest.FixtureRequest,
    digits: Callable[..., Any],
    zoo: Callable[..., Any],
    iterate: Callable[..., Any],
) -> Any:
    if '::' in request.param:
        return iterate(*zoo(request.param, num_layers=2))
    return iterate(digits(request.param))


def alone(side: Side) -> Side:
    """Return a side of which nothing has been read yet."""
    return Side(side.model, side.calls, side.samples)


def rows_of(site: Site, side: Side) -> list[Rows]:
    return site.weigh(side) if site.weigh else [Rows()] * len(site.read(side))


def read(site: Site, side: Side, rows: list[Rows]) -> list[Tensor]:
    found = site.read(side)
    assert len(found) == len(rows)
    return [reading.at(each.index) for reading, each in zip(found, rows)]


def emptied(model: nn.Module) -> None:
    """Take all that a model consists of."""
    for module in [*model.modules()]:
        for held in (module._parameters, module._buffers, module._modules):
            held.clear()


def poisoned(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)


def on_labels(plan: Plan) -> list[Site]:
    """Return the sites that have a term on images with labels."""
    return [s for s in plan.sites if (s.default or {}).get('on') != 'unlabeled']


def test_the_students_side_is_read_without_a_teacher(seen: Any) -> None:
    sites = on_labels(seen.plan)
    rows = {site.name: rows_of(site, alone(seen.teacher_side)) for site in sites}
    expected = {site.name: seen.read(site.name) for site in sites}
    emptied(seen.teacher)
    for site in sites:
        found = read(site, alone(seen.student_side), rows[site.name])
        assert found
        for tensor, each in zip(found, expected[site.name]):
            assert torch.equal(tensor, each.student)
            assert tensor.requires_grad
        # it can be weighed by itself too, as where there is no teacher yet
        both = alone(seen.student_side), alone(seen.student_side)
        for each in pair(site, *both):
            assert torch.equal(each.student, each.teacher)


def test_the_teachers_side_has_nothing_of_the_students_weights(seen: Any) -> None:
    sites = on_labels(seen.plan)
    expected = {site.name: seen.read(site.name) for site in sites}
    poisoned(seen.model)
    for site in sites:
        with torch.no_grad():
            side = alone(seen.teacher_side)
            rows = rows_of(site, side)
            found = read(site, side, rows)
        assert len(found) == len(rows) == len(expected[site.name]) > 0
        for tensor, row, each in zip(found, rows, expected[site.name]):
            assert torch.equal(tensor, each.teacher)
            for own, other in ((row.weight, each.weight), (row.norm, each.norm)):
                assert (own is None) == (other is None)
                assert own is None or torch.equal(own, other)


def made_up(*tensors: Tensor) -> Side:
    calls = [Call('made', 0, (), {}, output=tensor) for tensor in tensors]
    return Side(nn.Identity(), calls, [])


def of_rows(side: Side) -> list[Reading]:
    return [Reading(call.output.__getitem__, 'mask') for call in side.of('made')]


def likeliest(side: Side) -> list[Rows]:
    found = []
    for call in side.of('made'):
        order = call.output.sum(1).argsort(descending=True)[:2]
        found.append(Rows(weight=call.output[order].sum(1), index=order))
    return found


def test_rows_are_those_that_the_teacher_chose_on_both_sides() -> None:
    ours = torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    theirs = torch.tensor([[0.0, 0.0], [5.0, 5.0], [6.0, 7.0]], requires_grad=True)
    site = Site('masks', ('made',), of_rows, likeliest)
    (each,) = pair(site, made_up(ours), made_up(theirs))
    assert each.student.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert each.teacher.tolist() == [[6.0, 7.0], [5.0, 5.0]]
    assert each.weight is not None and each.weight.tolist() == [13.0, 10.0]
    assert each.student.requires_grad
    assert not each.teacher.requires_grad and not each.weight.requires_grad
    assert each.kind == 'mask'
    assert float(each.norm_of(torch.zeros(2))) == 23.0


def test_two_sides_that_do_not_fit_are_told_with_the_name_of_the_site() -> None:
    site = outputs_of('made', 'mine')
    with pytest.raises(RuntimeError, match=r'^mine: .*\(3, 2\).*\(4, 2\)'):
        pair(site, made_up(torch.zeros(3, 2)), made_up(torch.zeros(4, 2)))
    one, two = made_up(torch.zeros(3, 2)), made_up(*torch.zeros(2, 3, 2))
    for sides in ((one, two), (two, one)):
        with pytest.raises(RuntimeError, match=r'^mine: '):
            pair(site, *sides)
