"""What every loss promises, whatever it measures."""

import inspect

import pytest
import torch
from mmengine.registry import MODELS

from mmselfdistill import losses

MAPS, ROWS, MASKS = (2, 5, 4, 6), (7, 5), (3, 4, 6)
CASES = [
    ('SoftTargetLoss', {'temperature': 2.0}, {}, MAPS),
    ('SoftTargetLoss', {}, {'average_over': 'positives'}, ROWS),
    ('SoftTargetLoss', {'beta': 1.0}, {'activation': 'sigmoid'}, MAPS),
    (
        'SoftTargetLoss',
        {'beta': 0.5},
        {'activation': 'sigmoid', 'average_over': 'positives'},
        ROWS,
    ),
    ('PKDLoss', {}, {}, MAPS),
    ('PKDLoss', {}, {}, ROWS),
    ('FeatureMSELoss', {}, {}, MAPS),
    ('FeatureMSELoss', {}, {}, ROWS),
    ('InfoNCELoss', {}, {}, MAPS),
    ('InfoNCELoss', {'max_positions': 9}, {}, MAPS),
    ('InfoNCELoss', {}, {}, ROWS),
    ('BoxDistillLoss', {}, {'box_kind': 'bins'}, (7, 4 * 6)),
    ('BoxDistillLoss', {}, {'box_kind': 'deltas'}, (7, 4)),
    ('BoxDistillLoss', {}, {'box_kind': 'distances'}, (7, 4)),
    ('MaskDistillLoss', {'temperature': 3.0}, {}, (3, 1, 4, 6)),
    ('MaskDistillLoss', {}, {}, MASKS),
]
FUNCTIONS = {
    'SoftTargetLoss': 'soft_target_loss',
    'PKDLoss': 'pkd_loss',
    'FeatureMSELoss': 'feature_mse_loss',
    'InfoNCELoss': 'info_nce_loss',
    'BoxDistillLoss': 'box_distill_loss',
    'MaskDistillLoss': 'mask_distill_loss',
}
every_case = pytest.mark.parametrize(
    ('name', 'args', 'context', 'shape'),
    CASES,
    ids=[
        '-'.join(
            [name, *map(str, [*args.values(), *context.values()]), f'{len(shape)}d']
        )
        for name, args, context, shape in CASES
    ],
)


def build(name, args):
    return MODELS.build({'type': name, **args})


def pair(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    # distances are positive, and anything else may be too
    student, teacher = (
        torch.rand((2, *shape), generator=generator, dtype=dtype) * 3 + 0.1
    )
    return student.requires_grad_(), teacher.requires_grad_()


@every_case
def test_is_exactly_zero_when_student_equals_teacher(name, args, context, shape):
    _, teacher = pair(shape)
    student = teacher.detach().clone().requires_grad_()
    loss = build(name, args)(student, teacher, **context)
    assert loss.item() == 0.0
    loss.backward()
    assert student.grad.isfinite().all()
    if name != 'InfoNCELoss':
        torch.testing.assert_close(
            student.grad, torch.zeros_like(student), atol=1e-6, rtol=0
        )


@every_case
def test_gradient_reaches_the_student_and_never_the_teacher(name, args, context, shape):
    student, teacher = pair(shape)
    loss = build(name, args)(student, teacher, **context)
    assert loss.item() > 1e-3
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@every_case
def test_gradcheck(name, args, context, shape):
    student, teacher = pair(shape, torch.float64)
    module = build(name, args)
    assert module(student, teacher, **context).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda s: module(s, teacher.detach(), **context), (student,)
    )


@every_case
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_computes_in_float32_under_autocast(name, args, context, shape, dtype):
    student, teacher = (x.detach().to(dtype) for x in pair(shape))
    module = build(name, args)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = module(student, teacher, **context)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, module(student.float(), teacher.float(), **context))
    exact = module(student.double(), teacher.double(), **context)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-6)


@every_case
def test_of_nothing_is_a_zero_with_gradient(name, args, context, shape):
    source = torch.ones(3, requires_grad=True)
    student = source.sum() * torch.ones(0, *shape[1:])
    loss = build(name, args)(student, torch.ones(0, *shape[1:]), **context)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(source.grad, torch.zeros(3))


@every_case
def test_module_is_its_function_and_ignores_foreign_context(name, args, context, shape):
    student, teacher = pair(shape)
    module = build(name, args)
    function = getattr(losses, FUNCTIONS[name])
    every_key = {
        'activation': 'softmax',
        'average_over': 'positions',
        'valid': None,
        'confidence': None,
        'box_kind': 'deltas',
        'of_a_later_site': 1,
    }
    accepted = set(inspect.signature(function).parameters)
    foreign = {k: v for k, v in every_key.items() if k not in {*accepted, *context}}
    expected = function(student, teacher, **args, **context)
    assert torch.equal(module(student, teacher, **context, **foreign), expected)


@every_case
def test_differing_shapes_are_an_error(name, args, context, shape):
    student, teacher = pair(shape)
    with pytest.raises(ValueError, match=r'one shape, but got \(.*\) and \(1, '):
        build(name, args)(student, teacher[:1], **context)


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('SoftTargetLoss', {'temperature': 0}, 'temperature: expected a number > 0'),
        ('SoftTargetLoss', {'beta': -1}, 'beta: expected a number >= 0, but got -1'),
        ('InfoNCELoss', {'temperature': '1'}, "temperature: .* but got '1'"),
        ('InfoNCELoss', {'max_positions': 1}, 'max_positions: expected a number >= 2'),
        (
            'InfoNCELoss',
            {'max_positions': 2.5},
            'max_positions: expected a whole number',
        ),
        ('BoxDistillLoss', {'temperature': -1}, 'temperature: expected a number > 0'),
        ('MaskDistillLoss', {'temperature': True}, 'temperature: .* but got True'),
    ],
)
def test_bad_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**args)
