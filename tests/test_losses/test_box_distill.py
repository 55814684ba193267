from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from torch import Tensor

from mmselfdistill.losses import BoxDistillLoss, box_distill_loss
from mmselfdistill.losses.common import reduced

Array = NDArray[Any]

KINDS = {'bins': 4 * 8, 'offsets': 4, 'cxcywh': 4, 'sides': 4}
every_kind = pytest.mark.parametrize('kind', KINDS)


def average(
    student: Tensor, teacher: Tensor, confidence: Tensor | None = None, **args: Any
) -> Tensor:
    """Reduce the loss as sites do: by the teacher's confidence."""
    return reduced(box_distill_loss(student, teacher, **args), confidence)


def pair(count: int, kind: str) -> Array:
    boxes = np.random.default_rng(0).gamma(2.0, 3.0, (2, count, KINDS[kind]))
    return boxes if kind == 'sides' else boxes - 6.0


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    """Generalised IoU of two corner boxes, written without shared terms."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    union = area_a + area_b - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def difference(student: Array, teacher: Array, kind: str, temperature: float) -> float:
    """Distance of one box from another."""
    if kind in ('offsets', 'cxcywh'):
        return sum(abs(s - t) for s, t in zip(student, teacher)) / 4
    if kind == 'sides':
        point = np.array([31.0, -17.0] * 2)
        signs = np.array([-1, -1, 1, 1])
        return 1 - giou(point + signs * student, point + signs * teacher)
    total = 0.0
    for side in range(4):
        bins = slice(side * 8, side * 8 + 8)
        p, q = (
            softmax(teacher[bins] / temperature),
            softmax(student[bins] / temperature),
        )
        total += temperature**2 * rel_entr(p, q).sum()
    return total / 4


@every_kind
@pytest.mark.parametrize('count', [1, 2, 17])
@pytest.mark.parametrize('temperature', [1.0, 10.0])
@pytest.mark.parametrize('weighted', ['no', 'high', 'low'])
def test_is_the_weighted_mean_of_each_boxs_difference(
    kind: str, count: int, temperature: float, weighted: str
) -> None:
    student, teacher = pair(count, kind)
    scale = {'no': None, 'high': 1.0, 'low': 0.01}[weighted]
    confidence = None
    weights = np.ones(count)
    if scale is not None:
        weights = np.linspace(0.1, 1.0, count) * scale
        confidence = torch.from_numpy(weights).requires_grad_()
    loss = average(
        torch.from_numpy(student),
        torch.from_numpy(teacher),
        kind=kind,
        temperature=temperature,
        confidence=confidence,
    )
    each = [difference(s, t, kind, temperature) for s, t in zip(student, teacher)]
    expected = np.sum(weights * each) / max(weights.sum(), 1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert not loss.requires_grad, 'confidence is the teacher, it gets no gradient'


@every_kind
def test_boxes_the_teacher_does_not_believe_in_do_not_count(kind: str) -> None:
    student, teacher = (torch.from_numpy(x) for x in pair(9, kind))
    student.requires_grad_()
    sure = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0, 1], dtype=torch.float64)
    loss = average(student, teacher, kind=kind, confidence=sure)
    kept = sure.bool()
    torch.testing.assert_close(loss, average(student[kept], teacher[kept], kind=kind))
    loss.backward()
    assert (student.grad[~kept] == 0).all()
    nothing = average(student, teacher, kind=kind, confidence=torch.zeros(9))
    assert nothing.item() == 0.0


@every_kind
def test_value_does_not_depend_on_the_number_of_boxes(kind: str) -> None:
    student, teacher = (torch.from_numpy(x) for x in pair(9, kind))
    confidence = torch.rand(9) + 0.2
    torch.testing.assert_close(
        average(
            student.repeat(4, 1),
            teacher.repeat(4, 1),
            kind=kind,
            confidence=confidence.repeat(4),
        ),
        average(student, teacher, kind=kind, confidence=confidence),
    )


def test_giou_does_not_depend_on_the_unit() -> None:
    student, teacher = (torch.from_numpy(x) for x in pair(9, 'sides'))
    torch.testing.assert_close(
        average(student * 128, teacher * 128, kind='sides'),
        average(student, teacher, kind='sides'),
    )


def test_giou_of_boxes_that_do_not_meet() -> None:
    # around one point: [1, 3] x [-1, 1] and [-3, -1] x [-2, 1]; of one height,
    # a negative overlap would go unnoticed
    student = torch.tensor([[-1.0, 1.0, 3.0, 1.0]])
    teacher = torch.tensor([[3.0, 2.0, -1.0, 1.0]])
    expected = 1 - giou((1, -1, 3, 1), (-3, -2, -1, 1))
    for axes in ([0, 1, 2, 3], [1, 0, 3, 2]):
        loss = average(student[:, axes], teacher[:, axes], kind='sides')
        assert loss.item() == pytest.approx(expected)


def test_giou_of_empty_boxes() -> None:
    empty = torch.zeros(2, 4, requires_grad=True)
    loss = average(empty, torch.zeros(2, 4), kind='sides')
    assert loss.item() == 0.0
    full = torch.ones(2, 4)
    loss = loss + average(empty, full, kind='sides')
    assert loss.item() == pytest.approx(1.0)
    loss.backward()
    assert empty.grad.isfinite().all()


@pytest.mark.parametrize('far', [1e20, 3e38, float('inf')])
def test_giou_of_distances_whose_area_overflows(far: float) -> None:
    # two boxes that nothing trains, and the box that counts
    student = torch.tensor([[far] * 4, [2.0, far, 1.0, far], [1.0, 1.0, 1.0, 1.0]])
    teacher = torch.tensor([[far] * 4, [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0]])
    student.requires_grad_()
    loss = box_distill_loss(student, teacher, kind='sides')
    assert loss.tolist() == pytest.approx([0, 1, 0.5])
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad[:1].tolist() == [[0.0] * 4]
    # of an IoU of 4 / 8: (d inner * union - inner * d union) / union^2, which is 0
    # where the side adds nothing to the overlap
    assert student.grad[2, 3].item() == pytest.approx(-2 / 8)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    student, teacher = (torch.from_numpy(x) for x in pair(9, 'bins'))
    student, teacher = (student / 10).requires_grad_(), teacher / 10
    norms = [
        torch.autograd.grad(
            average(student, teacher, kind='bins', temperature=t), student
        )[0].norm()
        for t in (1.0, 4.0, 10.0, 100.0)
    ]
    assert max(norms) < 2 * min(norms)


@pytest.mark.parametrize(
    ('shape', 'kind', 'message'),
    [
        (
            (3, 4),
            'deltas',
            "^BoxDistillLoss takes .*, but the site is 'deltas'",
        ),
        ((3, 8), 'offsets', r"'offsets': expected .* \(N, 4\), .* \(3, 8\)"),
        ((3, 4), 'bins', r"'bins': expected .*\(N, 4 \* \(reg_max \+ 1\)\)"),
        ((3, 18), 'bins', r"'bins': expected .* but got \(3, 18\)"),
        ((1, 4, 2, 2), 'sides', r'\(N, 4\), but got \(1, 4, 2, 2\)'),
    ],
)
def test_what_does_not_fit_is_named(
    shape: tuple[int, ...], kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BoxDistillLoss()(torch.ones(shape), torch.ones(shape), kind=kind)


def test_weights_of_another_shape_are_refused() -> None:
    boxes = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r'each of \(3,\), but .* \(3, 1\)'):
        average(boxes, boxes, torch.ones(3, 1))


@pytest.mark.parametrize('count', [0, 1, 17])
def test_centre_and_size_are_compared_as_offsets_are(count: int) -> None:
    student, teacher = (torch.from_numpy(x) for x in pair(count, 'cxcywh'))
    assert torch.equal(
        box_distill_loss(student, teacher, kind='cxcywh'),
        box_distill_loss(student, teacher, kind='offsets'),
    )
