"""What plans and families are made of: seams, sides, arguments, kinds of scores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmselfdistill.families import Plan, Reading, Rows, Seam, Side, Site
from mmselfdistill.families.plan import Call, argument
from mmselfdistill.families.rois import chosen
from mmselfdistill.families.shared import (
    foreground,
    kind_of,
    labelled,
    seams,
    stages,
    sure_pixels,
    unpadded,
)


class Outer(nn.Module):
    """Holds another model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(dict(head=nn.Linear(3, 2)))


def read(side: Side) -> list[Reading]:
    assert isinstance(side.model, nn.ModuleDict)
    return [Reading(call.output, 'sigmoid') for call in side.of('head.forward')]


def weigh(side: Side) -> list[Rows]:
    return [Rows(weight=call.output[:, 0]) for call in side.of('head.forward')]


def calls_of(*paths: str) -> list[Call]:
    return [Call(path, 0, (), {}, output=torch.rand(4, 2)) for path in paths]


PLAN = Plan(
    'a head',
    (Seam('head.forward', keep=('x',)), Seam('loss', repeat=False)),
    (Site('logits', ('head.forward',), read, weigh, dict(type='SoftTargetLoss')),),
    shared=('head.weight',),
    skipped=dict(other='it is not read'),
)


def test_a_plan_under_a_path_reads_the_inner_model() -> None:
    plan = PLAN.under('inner')
    assert plan.name == 'a head in inner' and plan.inner == 'inner'
    first = Seam('inner.head.forward', keep=('x',))
    assert plan.seams == (first, Seam('inner.loss', repeat=False))
    assert plan.shared == ('inner.head.weight',)
    assert plan.skipped == PLAN.skipped
    calls = calls_of('inner.head.forward', 'head.forward', 'inner.head.forward')
    side = Side(Outer(), calls, [])
    (site,) = plan.sites
    assert site.seams == ('inner.head.forward',)
    assert site.default == dict(type='SoftTargetLoss')
    found, rows = site.read(side), site.weigh and site.weigh(side)
    # the call of the outer model's own head is another one
    for reading, row, call in zip(found, rows or [], (calls[0], calls[2])):
        assert reading.at(None) is call.output
        assert row.weight is not None
        assert torch.equal(row.weight, call.output[:, 0])
    assert len(found) == len(rows or []) == 2
    # what the outer side was asked for stays as it is
    assert side.calls is calls and calls[0].path == 'inner.head.forward'


def test_a_site_without_weights_has_none_under_a_path_either() -> None:
    plan = Plan('features', sites=(Site('features', ('head.forward',), read),))
    assert plan.under('inner').sites[0].weigh is None


def test_the_inner_side_knows_of_the_images_what_the_outer_one_does() -> None:
    metas = [dict(img_shape=(3, 4))]
    side = Side(Outer(), [], None, 0.9, metas)
    inner = side.inside('inner')
    assert inner is side.inside('inner')
    assert inner.model is side.model.get_submodule('inner')
    assert (inner.samples, inner.confidence) == (None, 0.9)
    assert inner.metas is metas


def test_further_seams_come_once_and_leave_the_plans_own() -> None:
    further = (Seam('head.forward'), Seam('neck.forward'), Seam('neck.forward'))
    plan = PLAN.with_seams(*further)
    assert plan.seams == (*PLAN.seams, Seam('neck.forward'))
    assert plan.seams[0].keep == ('x',)
    assert PLAN.site('logits') is PLAN.sites[0]
    assert PLAN.site('masks') is None


def test_what_several_sites_read_is_read_once() -> None:
    counted = []

    def count(side: Side) -> int:
        counted.append(side)
        return 7

    side = Side(nn.Identity(), calls_of('a', 'b', 'a'), [])
    assert [side.once('calls', count) for _ in '12'] == [7, 7]
    assert len(counted) == 1 and counted[0] is side
    first, second = side.of('a')
    assert first is side.calls[0] and second is side.calls[2]


def test_an_argument_is_taken_by_place_or_by_name() -> None:
    def method(first: Any, second: Any, third: Any = None) -> None:
        pass

    take = argument(method, 'second')
    assert take(Call('m', 0, (1, 2), {})) == 2
    assert take(Call('m', 0, (1,), dict(second=3))) == 3


def test_of_each_row_the_chosen_entry_is_taken() -> None:
    tensor = torch.arange(24.0).view(3, 2, 4)
    taken = chosen(tensor)(torch.tensor([1, 0, 1]))
    expected = torch.stack([tensor[0, 1], tensor[1, 0], tensor[2, 1]])
    assert torch.equal(taken, expected)
    assert chosen(tensor[:0])(torch.zeros(0, dtype=torch.long)).shape == (0, 4)


@pytest.mark.parametrize(
    ('head', 'kind'),
    [
        (dict(use_sigmoid_cls=True), 'sigmoid'),
        (dict(use_sigmoid_cls=False), 'softmax'),
        (dict(loss_cls=SimpleNamespace(use_sigmoid=True)), 'sigmoid'),
        (dict(loss_cls=SimpleNamespace(use_sigmoid=False)), 'softmax'),
        # it says nothing: a softmax needs a channel for the background
        (dict(num_classes=3, cls_out_channels=3), 'sigmoid'),
        (dict(num_classes=3, cls_out_channels=4), 'softmax'),
        (dict(), 'sigmoid'),
    ],
)
def test_a_head_says_itself_how_scores_become_probabilities(
    head: dict[str, Any], kind: str
) -> None:
    assert kind_of(SimpleNamespace(**head)) == kind


def test_any_object_is_what_is_no_background() -> None:
    logits = torch.randn(5, 4)
    objects = [sum(row[:-1]) / sum(row) for row in logits.double().exp().tolist()]
    torch.testing.assert_close(foreground(logits, 'softmax'), torch.tensor(objects))
    assert torch.equal(foreground(logits, 'sigmoid'), logits.sigmoid().amax(1))
    half: Tensor = logits.half()
    assert foreground(half, 'softmax').dtype == torch.float32


def test_a_no_of_a_single_sigmoid_is_as_sure_as_a_yes() -> None:
    # two images of four pixels, of which the second ends after three
    logits = torch.tensor([[4.0, -4.0, 0.5, -0.5], [-4.0, -4.0, 0.5, -9.0]])
    shown = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    maps = logits.view(2, 1, 2, 2), shown.view(2, 2, 2)
    share = sure_pixels(maps[0], 'sigmoid', 0.9, maps[1])
    torch.testing.assert_close(share, torch.tensor([1 / 2, 2 / 3]))
    # of several, none of them is no answer
    several = torch.cat([maps[0], maps[0]], 1)
    share = sure_pixels(several, 'sigmoid', 0.9, maps[1])
    torch.testing.assert_close(share, torch.tensor([1 / 4, 0.0]))
    # a crop from beside a rotated image
    share = sure_pixels(several, 'sigmoid', 0.9, torch.zeros(2, 2, 2))
    torch.testing.assert_close(share, torch.zeros(2))


def test_without_an_ignored_label_all_pixels_have_one() -> None:
    labels = torch.tensor([[[0, 255], [1, 0]]])
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    assert labelled([sample], (2, 2), 255).tolist() == [[[1, 0], [1, 1]]]
    assert labelled([sample], (2, 2), 0).tolist() == [[[0, 1], [1, 0]]]
    assert labelled([sample], (2, 2), None).tolist() == [[[1, 1], [1, 1]]]


def test_padding_is_what_an_image_lacks_of_its_batch() -> None:
    own, whole = dict(img_shape=(4, 6), pad_shape=(4, 6, 3)), dict(img_shape=(8, 8, 3))
    metas = [dict(each, batch_input_shape=(8, 8)) for each in (own, whole)]
    found = unpadded(metas, (4, 4), torch.device('cpu'))
    expected = torch.ones(2, 4, 4)
    expected[0, 2:], expected[0, :, 3:] = 0, 0
    assert found is not None and torch.equal(found, expected)


def test_heads_are_named_one_by_one() -> None:
    model = nn.Module()
    model.one, model.several = nn.Linear(1, 1), nn.ModuleList([nn.Identity()] * 2)
    assert stages(model, 'one') == ['one']
    assert stages(model, 'several') == ['several.0', 'several.1']
    assert stages(model, 'none') == []
    assert seams('a', 'b', 'a') == (Seam('a'), Seam('b'))
