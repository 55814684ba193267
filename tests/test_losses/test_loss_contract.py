"""What every loss promises, whatever it measures."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill import losses
from mmselfdistill.losses.common import reduced

# of sums of squares in float32
ROUNDING = 1e-12
MAPS, ROWS, MASKS = (2, 5, 4, 6), (7, 5), (3, 4, 6)
CASES: list[tuple[str, dict[str, Any], str, tuple[int, ...]]] = [
    ('SoftTargetLoss', {'temperature': 2.0}, 'softmax', MAPS),
    ('SoftTargetLoss', {}, 'softmax', ROWS),
    ('SoftTargetLoss', {'beta': 1.0}, 'sigmoid', MAPS),
    ('SoftTargetLoss', {'beta': 0.5}, 'sigmoid', ROWS),
    ('PseudoLabelLoss', {'threshold': 0.0}, 'softmax', MAPS),
    ('PseudoLabelLoss', {'threshold': 0.3}, 'softmax', ROWS),
    ('PseudoLabelLoss', {'threshold': 0.8}, 'sigmoid', MAPS),
    ('PseudoLabelLoss', {'threshold': 0.9}, 'sigmoid', ROWS),
    ('PKDLoss', {}, 'any', MAPS),
    ('PKDLoss', {}, 'any', ROWS),
    ('FeatureMSELoss', {}, 'any', MAPS),
    ('FeatureMSELoss', {}, 'any', ROWS),
    ('InfoNCELoss', {}, 'any', MAPS),
    ('InfoNCELoss', {'max_positions': 9}, 'any', MAPS),
    ('InfoNCELoss', {}, 'any', ROWS),
    ('FeatureMSELoss', {'projector': 5}, 'any', MAPS),
    ('FeatureMSELoss', {'projector': 5}, 'any', ROWS),
    ('BoxDistillLoss', {}, 'bins', (7, 4 * 6)),
    ('BoxDistillLoss', {'temperature': 3.0}, 'bins', (7, 4 * 6)),
    ('BoxDistillLoss', {}, 'offsets', (7, 4)),
    ('BoxDistillLoss', {}, 'cxcywh', (7, 4)),
    ('BoxDistillLoss', {}, 'sides', (7, 4)),
    ('MaskDistillLoss', {'temperature': 3.0}, 'mask', (3, 1, 4, 6)),
    ('MaskDistillLoss', {}, 'mask', MASKS),
]
KINDS = ('softmax', 'sigmoid', 'bins', 'offsets', 'cxcywh', 'sides', 'mask', 'any')
TAKEN = {
    'SoftTargetLoss': ('softmax', 'sigmoid'),
    'PseudoLabelLoss': ('softmax', 'sigmoid'),
    'BoxDistillLoss': ('bins', 'offsets', 'cxcywh', 'sides'),
    'MaskDistillLoss': ('mask',),
}
# rows cannot be told apart: one number in all
SCALAR = ('PKDLoss', 'FeatureMSELoss', 'InfoNCELoss')
# a student may be better or surer than its teacher: negative, and pulled that way
NO_DISTANCE = ('InfoNCELoss', 'PseudoLabelLoss')
FUNCTIONS = {
    'SoftTargetLoss': 'soft_target_loss',
    'PseudoLabelLoss': 'pseudo_label_loss',
    'PKDLoss': 'pkd_loss',
    'FeatureMSELoss': 'feature_mse_loss',
    'InfoNCELoss': 'info_nce_loss',
    'BoxDistillLoss': 'box_distill_loss',
    'MaskDistillLoss': 'mask_distill_loss',
}
every_case = pytest.mark.parametrize(
    ('name', 'args', 'kind', 'shape'),
    CASES,
    ids=[
        '-'.join([name, *map(str, args.values()), kind, f'{len(shape)}d'])
        for name, args, kind, shape in CASES
    ],
)


def build(name: str, args: dict[str, Any]) -> nn.Module:
    return MODELS.build({'type': name, **args})


def pair(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # distances are positive, and anything else may be too
    student, teacher = (
        torch.rand((2, *shape), generator=generator, dtype=dtype) * 3 + 0.1
    )
    return student.requires_grad_(), teacher.requires_grad_()


@every_case
def test_is_exactly_zero_when_student_equals_teacher(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    _, teacher = pair(shape)
    student = teacher.detach().clone().requires_grad_()
    divergence = build(name, args)(student, teacher, kind=kind)
    # PyTorch 2.1 adds up in another order where a tensor lies elsewhere
    assert (divergence.abs() <= ROUNDING).all()
    reduced(divergence).backward()
    assert student.grad.isfinite().all()
    if name not in NO_DISTANCE:
        torch.testing.assert_close(
            student.grad, torch.zeros_like(student), atol=1e-6, rtol=0
        )


@every_case
def test_gradient_reaches_the_student_and_never_the_teacher(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    student, teacher = pair(shape)
    loss = reduced(build(name, args)(student, teacher, kind=kind))
    assert loss.item() > 1e-3
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@every_case
def test_gradcheck(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    student, teacher = pair(shape, torch.float64)
    module = build(name, args)
    assert module(student, teacher, kind=kind).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda s: module(s, teacher.detach(), kind=kind), (student,)
    )


@every_case
@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_computes_in_float32_under_autocast_and_of_half_inputs(
    name: str,
    args: dict[str, Any],
    kind: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    autocast: bool,
) -> None:
    student, teacher = (x.detach().to(dtype) for x in pair(shape))
    module = build(name, args)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        loss = module(student, teacher, kind=kind)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, module(student.float(), teacher.float(), kind=kind))
    exact = module(student.double(), teacher.double(), kind=kind)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-6)


@every_case
def test_of_nothing_is_a_zero_with_gradient(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    source = torch.ones(3, requires_grad=True)
    student = source.sum() * torch.ones(0, *shape[1:])
    loss = reduced(build(name, args)(student, torch.ones(0, *shape[1:]), kind=kind))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(source.grad, torch.zeros(3))


@every_case
def test_module_is_its_function(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    student, teacher = pair(shape)
    function = getattr(losses, FUNCTIONS[name])
    known = dict(args) if name in SCALAR else {**args, 'kind': kind}
    if 'projector' in known:
        known['projector'] = torch.eye(known['projector'])
    expected = function(student, teacher, **known)
    assert torch.equal(build(name, args)(student, teacher, kind=kind), expected)


@every_case
def test_returns_one_number_a_row_or_one_in_all(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    divergence = build(name, args)(*pair(shape), kind=kind)
    if name in SCALAR:
        expected: tuple[int, ...] = ()
    elif kind == 'mask' or len(shape) == 2:
        expected = shape[:1]
    else:
        expected = (shape[0], *shape[2:])
    assert divergence.shape == expected
    # a row does not know of the others
    if expected:
        one = (x[1:2] for x in pair(shape))
        torch.testing.assert_close(build(name, args)(*one, kind=kind), divergence[1:2])


@every_case
def test_the_layout_in_memory_does_not_matter(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    student, teacher = pair(shape)
    expected = build(name, args)(student, teacher, kind=kind)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    # as channels last are: the same numbers, in another order in memory
    given, turned = (
        x.detach().transpose(0, -1).contiguous().transpose(0, -1) for x in pair(shape)
    )
    assert not given.is_contiguous()
    given.requires_grad_()
    for other in (turned, teacher):
        loss = build(name, args)(given, other, kind=kind)
        torch.testing.assert_close(loss, expected)
        (found,) = torch.autograd.grad(loss.sum(), given)
        torch.testing.assert_close(found, slope)


@every_case
def test_differing_shapes_are_an_error(
    name: str, args: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    student, teacher = pair(shape)
    with pytest.raises(ValueError, match=r'one shape, but got \(.*\) and \(1, '):
        build(name, args)(student, teacher[:1], kind=kind)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_kind_that_it_cannot_take_is_named_with_those_it_takes(
    name: str, kind: str
) -> None:
    # a shape that is of every kind
    student, teacher = pair((8, 8) if kind == 'bins' else (8, 4))
    taken = TAKEN.get(name, KINDS)
    if kind in taken:
        assert build(name, {})(student, teacher, kind=kind).isfinite().all()
        return
    with pytest.raises(ValueError, match=f"but the site is '{kind}'$") as error:
        build(name, {})(student, teacher, kind=kind)
    said = str(error.value).split(', but')[0]
    assert said.startswith(f'{name} takes ')
    assert sorted(re.findall("'(.*?)'", said)) == sorted(taken)


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('SoftTargetLoss', {'temperature': 0}, 'temperature: expected a number > 0'),
        ('SoftTargetLoss', {'beta': -1}, 'beta: expected a number >= 0, but got -1'),
        ('PseudoLabelLoss', {'threshold': 1.5}, 'threshold: expected .* but got 1.5'),
        ('InfoNCELoss', {'temperature': '1'}, "temperature: .* but got '1'"),
        (
            'InfoNCELoss',
            {'max_positions': 1},
            'max_positions: expected an integer >= 2',
        ),
        (
            'InfoNCELoss',
            {'max_positions': 2.5},
            'max_positions: expected an integer >= 2, but got 2.5',
        ),
        ('BoxDistillLoss', {'temperature': -1}, 'temperature: expected a number > 0'),
        ('MaskDistillLoss', {'temperature': True}, 'temperature: .* but got True'),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**args)
