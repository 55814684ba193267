"""Dense heads: one row an anchor, counted out by hand."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor

from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import find_plan

CLASSES = 10
FCOS = dict(
    _delete_=True,
    type='FCOSHead',
    num_classes=CLASSES,
    in_channels=32,
    feat_channels=32,
    stacked_convs=1,
    strides=[4, 8, 16],
    regress_ranges=((-1, 16), (16, 32), (32, 1e8)),
)
ATSS = dict(
    _delete_=True,
    type='ATSSHead',
    num_classes=CLASSES,
    in_channels=32,
    feat_channels=32,
    stacked_convs=1,
    norm_cfg=dict(type='GN', num_groups=8),
    anchor_generator=dict(
        type='AnchorGenerator',
        ratios=[1.0],
        octave_base_scale=4,
        scales_per_octave=1,
        strides=[4, 8, 16],
    ),
    loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
)
YOLOX = dict(
    _delete_=True,
    type='YOLOXHead',
    num_classes=CLASSES,
    in_channels=32,
    feat_channels=32,
    stacked_convs=1,
    strides=(4, 8, 16),
)
SOFTMAX = dict(
    _delete_=True, type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
)
RETINANET = 'retinanet_r18_fpn_50e_digits'
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'retinanet': (RETINANET, {}),
    'retinanet softmax': (RETINANET, dict(bbox_head__loss_cls=SOFTMAX)),
    'gfl': ('gfl_r18_fpn_50e_digits', {}),
    'fcos': (RETINANET, dict(type='FCOS', bbox_head=FCOS)),
    'atss': (
        RETINANET,
        dict(
            type='ATSS',
            bbox_head=ATSS,
            train_cfg__assigner=dict(_delete_=True, type='ATSSAssigner', topk=4),
        ),
    ),
    'yolox': (
        RETINANET,
        dict(
            type='SingleStageDetector',
            bbox_head=YOLOX,
            train_cfg__assigner=dict(_delete_=True, type='SimOTAAssigner'),
        ),
    ),
}
# columns of logits and boxes, what boxes are, and what their confidence is made of
EXPECTED: dict[str, tuple[int, int, str, str | None]] = {
    'retinanet': (10, 4, 'offsets', None),
    'retinanet softmax': (11, 4, 'offsets', None),
    'gfl': (10, 4 * 9, 'bins', None),
    'fcos': (10, 4, 'sides', 'centernesses'),
    'atss': (10, 4, 'offsets', 'centernesses'),
    'yolox': (10, 4, 'offsets', 'objectnesses'),
}


@pytest.fixture(scope='module', params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    result: str = request.param
    return result


@pytest.fixture(scope='module')
def iteration(
    name: str, digits: Callable[..., Any], iterate: Callable[..., Any]
) -> Any:
    stem, changes = MODELS[name]
    return iterate(digits(stem, **changes))


def outputs_of(model: Any, inputs: Tensor) -> dict[str, list[Tensor]]:
    """Call the head directly, and name what it returns."""
    names = dict(
        FCOSHead=['cls', 'box', 'centernesses'],
        ATSSHead=['cls', 'box', 'centernesses'],
        YOLOXHead=['cls', 'box', 'objectnesses'],
    ).get(type(model.bbox_head).__name__, ['cls', 'box'])
    with torch.no_grad():
        outputs = model.bbox_head(model.extract_feat(inputs))
    return dict(zip(names, outputs))


def anchors(levels: list[Tensor], columns: int) -> Iterator[tuple[int, ...]]:
    """Yield level, image, anchor, y and x of each row, in the order of the rows."""
    for level, tensor in enumerate(levels):
        images, channels, height, width = tensor.shape
        for image in range(images):
            for y in range(height):
                for x in range(width):
                    for anchor in range(channels // columns):
                        yield level, image, anchor, y, x


def check_rows(rows: Tensor, levels: list[Tensor], columns: int) -> None:
    expected = [
        levels[level][image, anchor * columns : (anchor + 1) * columns, y, x]
        for level, image, anchor, y, x in anchors(levels, columns)
    ]
    assert torch.equal(rows, torch.stack(expected))


def test_logits_are_a_row_an_anchor(name: str, iteration: Any) -> None:
    columns = EXPECTED[name][0]
    (pair,) = iteration.read('logits')
    inputs = iteration.data['inputs']
    check_rows(pair.student, outputs_of(iteration.model, inputs)['cls'], columns)
    check_rows(pair.teacher, outputs_of(iteration.teacher, inputs)['cls'], columns)
    assert pair.student.requires_grad
    assert not pair.teacher.requires_grad
    assert pair.kind == ('softmax' if 'softmax' in name else 'sigmoid')
    outputs = outputs_of(iteration.teacher, inputs)
    if EXPECTED[name][3] == 'objectnesses':
        # the classes of a head with objectness hold where there is an object
        assert pair.norm is None
        check_rows(pair.weight[:, None], sigmoids(outputs['objectnesses']), 1)
    else:
        assert pair.weight is None
        scores = [score for score, _ in objects(name, outputs)]
        assert float(pair.norm) == pytest.approx(sum(scores), rel=1e-5)


def sigmoids(levels: list[Tensor]) -> list[Tensor]:
    return [level.sigmoid() for level in levels]


def objects(name: str, outputs: dict[str, list[Tensor]]) -> Iterator[tuple[float, Any]]:
    """Yield how likely each row is any object, with the place of the row."""
    columns = EXPECTED[name][0]
    for place in anchors(outputs['cls'], columns):
        level, image, anchor, y, x = place
        first = anchor * columns
        logits = outputs['cls'][level][image, first : first + columns, y, x].tolist()
        if 'softmax' in name:
            odds = [math.exp(logit) for logit in logits]
            yield sum(odds[:-1]) / sum(odds), place
        else:
            yield max(1 / (1 + math.exp(-logit)) for logit in logits), place


def test_boxes_are_in_the_same_rows(name: str, iteration: Any) -> None:
    _, columns, kind, _ = EXPECTED[name]
    (pair,) = iteration.read('boxes')
    inputs = iteration.data['inputs']
    check_rows(pair.student, outputs_of(iteration.model, inputs)['box'], columns)
    check_rows(pair.teacher, outputs_of(iteration.teacher, inputs)['box'], columns)
    assert len(pair.student) == len(iteration.read('logits')[0].student)
    assert pair.kind == kind


def test_boxes_count_by_the_teachers_confidence(name: str, iteration: Any) -> None:
    factor = EXPECTED[name][3]
    outputs = outputs_of(iteration.teacher, iteration.data['inputs'])
    (pair,) = iteration.read('boxes')
    expected = []
    for score, (level, image, _, y, x) in objects(name, outputs):
        if factor is not None:
            logit = float(outputs[factor][level][image, 0, y, x])
            score /= 1 + math.exp(-logit)
        expected.append(score)
    torch.testing.assert_close(pair.weight, torch.tensor(expected))
    assert not pair.weight.requires_grad
    assert pair.norm is None


def test_quality_is_a_row_a_position(name: str, iteration: Any) -> None:
    factor = EXPECTED[name][3]
    if factor is None:
        assert iteration.plan.site('quality') is None
        return
    (pair,) = iteration.read('quality')
    inputs = iteration.data['inputs']
    ours = outputs_of(iteration.model, inputs)[factor]
    outputs = outputs_of(iteration.teacher, inputs)
    check_rows(pair.student, ours, 1)
    check_rows(pair.teacher, outputs[factor], 1)
    assert pair.kind == 'sigmoid'
    if factor == 'objectnesses':
        # it is trained everywhere: the sum is divided by a soft count
        assert pair.weight is None
        total = sum(float(each.sum()) for each in sigmoids(outputs[factor]))
        assert float(pair.norm) == pytest.approx(total, rel=1e-5)
    else:
        assert pair.norm is None
        expected = [score for score, _ in objects(name, outputs)]
        torch.testing.assert_close(pair.weight, torch.tensor(expected))


def test_rows_are_in_the_order_of_the_heads_own_anchors(
    digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    """The likeliest row is the anchor that the head itself decodes to a box."""
    iteration = iterate(digits(RETINANET))
    head = iteration.teacher.bbox_head
    inputs = iteration.data['inputs']
    outputs = outputs_of(iteration.teacher, inputs)
    sizes = [tuple(level.shape[2:]) for level in outputs['cls']]
    priors = head.prior_generator.grid_priors(sizes, device='cpu')
    count = [len(each) for each in priors]
    (logits,), (boxes,) = iteration.read('logits'), iteration.read('boxes')
    # a level's rows hold all images, one after the other
    second_image: list[Tensor] = []
    second_scores: list[Tensor] = []
    start = 0
    for each in count:
        second_image.append(boxes.teacher[start + each : start + 2 * each])
        second_scores.append(logits.teacher[start + each : start + 2 * each])
        start += 2 * each
    assert start == len(boxes.teacher)
    scores = torch.cat(second_scores).sigmoid()
    decoded = head.bbox_coder.decode(
        torch.cat(priors), torch.cat(second_image), max_shape=(64, 64)
    )
    best = int(scores.amax(1).argmax())
    with torch.no_grad():
        metas = [sample.metainfo for sample in iteration.data['data_samples']]
        result = head.predict_by_feat(
            outputs['cls'], outputs['box'], batch_img_metas=metas, with_nms=False
        )[1]
    top = int(result.scores.argmax())
    assert float(result.scores[top]) == float(scores.max())
    torch.testing.assert_close(result.bboxes[top], decoded[best])


def test_defaults_are_for_every_site(iteration: Any) -> None:
    terms = default_terms(iteration.plan)
    assert [*terms] == [site.name for site in iteration.plan.sites]
    assert terms.keys() >= {'features', 'logits', 'boxes'}
    features = iteration.read('features')
    assert [pair.student.shape[1:] for pair in features] == [
        (32, 16, 16),
        (32, 8, 8),
        (32, 4, 4),
    ]


LEFT_OUT = {
    'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py': ({'boxes'}, {'bbox_preds'}),
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py': (
        {'boxes'},
        {'pts_preds_init'},
    ),
    'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py': (
        set(),
        {'bbox_preds', 'shape_preds', 'loc_preds'},
    ),
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': ({'boxes', 'quality'}, set()),
}


@pytest.mark.parametrize('key', LEFT_OUT)
def test_outputs_that_are_not_compared_are_named(
    key: str, zoo: Callable[..., Any]
) -> None:
    plan = find_plan(zoo(key)[0])
    sites, left_out = LEFT_OUT[key]
    assert {site.name for site in plan.sites} == {'features', 'logits', *sites}
    assert set(plan.skipped) == left_out


def test_boxes_of_other_than_4_numbers_are_no_distributions(
    digits: Callable[..., Any],
) -> None:
    model = digits('retinanet_r18_fpn_50e_digits')
    model.bbox_head.bbox_coder.encode_size = 8
    plan = find_plan(model)
    assert {site.name for site in plan.sites} == {'features', 'logits'}
    assert plan.skipped['bbox_preds'] == '8 numbers a box: those of 4 are compared'
