"""Segmentors: logits of the decode heads, and which of their pixels are labelled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import DAHead, EncHead, FCNHead
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.core.terms import default_terms
from mmselfdistill.families import Side, find_plan
from mmselfdistill.families.plan import Call
from mmselfdistill.families.segmentor import _kind
from mmselfdistill.losses import SoftTargetLoss
from mmselfdistill.losses.common import reduced

DEEPLAB = 'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64'
SEGFORMER = 'segformer_mit-b0_1xb8-1500_digits-64x64'
CLASSES = 11
SOFTMAX: dict[str, Any] = dict(type='CrossEntropyLoss', use_sigmoid=False)
SIGMOID: dict[str, Any] = dict(type='CrossEntropyLoss', use_sigmoid=True)
HEAD = dict(
    channels=16,
    num_classes=CLASSES,
    norm_cfg=dict(type='BN'),
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False),
)
CASCADE: dict[str, Any] = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    auxiliary_head=None,
    decode_head=[
        dict(type='FCNHead', in_channels=64, in_index=2, num_convs=1, **HEAD),
        dict(type='OCRHead', in_channels=128, in_index=3, ocr_channels=8, **HEAD),
    ],
)


@pytest.fixture(scope='module')
def deeplab(digits: Callable[..., Any], iterate: Callable[..., Any]) -> Any:
    return iterate(digits(DEEPLAB))


def labels_of(iteration: Any) -> Tensor:
    samples = iteration.data['data_samples']
    return torch.stack([sample.gt_sem_seg.data[0] for sample in samples])


def labelled(labels: Tensor, height: int, width: int, ignore: int) -> Tensor:
    """Say which pixels have a label, by looking each one up."""
    result = torch.zeros(len(labels), height, width)
    for image in range(len(labels)):
        for y in range(height):
            for x in range(width):
                row = y * labels.shape[1] // height
                column = x * labels.shape[2] // width
                result[image, y, x] = float(labels[image, row, column] != ignore)
    return result


def test_logits_are_the_decode_heads_alone(deeplab: Any) -> None:
    (pair,) = deeplab.read('logits')
    inputs = deeplab.data['inputs']
    for side, model in ((pair.student, deeplab.model), (pair.teacher, deeplab.teacher)):
        assert side.shape == (2, CLASSES, 16, 16)
        with torch.no_grad():
            assert torch.equal(side, model.decode_head(model.extract_feat(inputs)))
    assert pair.student.requires_grad
    assert pair.kind == 'softmax'
    # the auxiliary head is there, but no part of inference
    assert isinstance(deeplab.model.auxiliary_head, nn.Module)
    assert not [seam for seam in deeplab.plan.seams if 'auxiliary' in seam.path]
    assert 'auxiliary_head' in deeplab.plan.skipped
    # without labels only what the teacher is sure of
    where = {name: term['on'] for name, term in default_terms(deeplab.plan).items()}
    labeled = dict(features='labeled', logits='labeled')
    assert where == dict(labeled, pseudo_labels='unlabeled')


def test_features_are_the_backbones_stages(deeplab: Any) -> None:
    shapes = [pair.student.shape[1:] for pair in deeplab.read('features')]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 8, 8), (128, 8, 8)]


def test_ignored_pixels_do_not_count(deeplab: Any) -> None:
    (pair,) = deeplab.read('logits')
    valid = pair.weight
    assert torch.equal(valid, labelled(labels_of(deeplab), 16, 16, ignore=255))
    assert 0 < valid.sum() < valid.numel()
    assert pair.norm is None

    def loss_of(student: Tensor) -> Tensor:
        divergence = SoftTargetLoss()(student, pair.teacher, kind=pair.kind)
        return reduced(divergence, pair.weight, pair.norm)

    student = pair.student.detach()
    before = loss_of(student)
    ignored = (valid == 0)[:, None]
    disturbed = student + 5 * ignored * torch.randn_like(student)
    assert float(loss_of(disturbed)) == pytest.approx(float(before), rel=1e-6)
    # the mean is over the labelled pixels
    log_p, log_q = pair.teacher.log_softmax(1), student.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    expected = sum(float(kl[tuple(at)]) for at in valid.nonzero()) / int(valid.sum())
    assert float(before) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('channels', [CLASSES, 1])
def test_without_labels_an_image_counts_by_its_sure_pixels(
    digits: Callable[..., Any], iterate: Callable[..., Any], channels: int
) -> None:
    one = dict(decode_head__out_channels=1, decode_head__threshold=0.5)
    model = digits(
        SEGFORMER,
        **(one if channels == 1 else {}),
        decode_head__num_classes=max(channels, 2),
        decode_head__loss_decode=SIGMOID if channels == 1 else SOFTMAX,
    )
    (plain,) = iterate(model, labels=False).read('logits')
    assert plain.weight is None and plain.norm is None
    logits = plain.teacher
    probabilities = logits.softmax(1) if channels > 1 else logits.sigmoid()
    if channels == 1:
        probabilities = torch.cat([probabilities, 1 - probabilities], 1)
    threshold = float(probabilities.amax(1).median())
    (pair,) = iterate(model, labels=False, confidence=threshold).read('logits')
    divergence = SoftTargetLoss()(pair.student, logits, kind=pair.kind)
    expected, shares = 0.0, []
    for image, losses in zip(probabilities, divergence):
        sure = [max(p) > threshold for p in image.flatten(1).t().tolist()]
        shares.append(sum(sure) / len(sure))
        expected += shares[-1] * float(losses.detach().mean()) / len(divergence)
    # another share of each, and less than all
    assert 0 < min(shares) < max(shares) < 1
    found = reduced(divergence, pair.weight, pair.norm)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    # of images with labels, it changes nothing
    if channels > 1:
        (labelled_pair,) = iterate(model, confidence=threshold).read('logits')
        assert {*labelled_pair.weight.unique().tolist()} == {0.0, 1.0}


@pytest.mark.parametrize('size', [(5, 7), (64, 64), (16, 16), (31, 13)])
@pytest.mark.parametrize('confidence', [None, 0.2])
def test_without_labels_padding_does_not_count(
    deeplab: Any, size: tuple[int, int], confidence: float | None
) -> None:
    logits = torch.randn(3, CLASSES, *size)
    call = Call('decode_head.forward', 0, (), {}, output=logits)
    shapes = [(64, 64), (30, 41), (64, 17)]
    metas = [dict(img_shape=shape, pad_shape=(64, 64)) for shape in shapes]
    shown = torch.zeros(3, *size)
    for image, (height, width) in enumerate(shapes):
        for y in range(size[0]):
            for x in range(size[1]):
                inside = y * 64 // size[0] < height and x * 64 // size[1] < width
                shown[image, y, x] = float(inside)
    side = Side(deeplab.teacher, [call], None, confidence, metas)
    (rows,) = deeplab.site('pseudo_labels').weigh(side)
    if confidence is None:
        assert torch.equal(rows.weight, shown)
    else:
        sure = (logits.softmax(1).amax(1) > confidence) * shown
        share = sure.sum((1, 2)) / shown.sum((1, 2))
        torch.testing.assert_close(rows.weight, share[:, None, None] * shown)
        assert rows.norm == shown.sum()
    # where no image is padded, all pixels count
    for meta in metas:
        meta['img_shape'] = (64, 64)
    (rows,) = deeplab.site('pseudo_labels').weigh(replace(side, metas=metas))
    assert confidence is not None or rows.weight is None


DICE = dict(type='DiceLoss')
LOSSES: dict[str, tuple[list[dict[str, Any]], str]] = {
    'a cross-entropy decides': ([dict(type='CrossEntropyLoss'), DICE], 'softmax'),
    'of sigmoids too': ([SIGMOID, DICE], 'sigmoid'),
    'also next to one of a softmax': ([SIGMOID, dict(type='TverskyLoss')], 'sigmoid'),
    'Dice alone': ([DICE], 'sigmoid'),
    'Lovasz is of a softmax': (
        [dict(type='LovaszLoss', reduction='none'), DICE],
        'softmax',
    ),
    'Tversky': ([dict(type='TverskyLoss')], 'softmax'),
    'Tversky and Dice': ([dict(type='TverskyLoss'), DICE], 'softmax'),
    'Hausdorff and Dice': ([dict(type='HuasdorffDisstanceLoss'), DICE], 'softmax'),
    'focal': ([dict(type='FocalLoss')], 'sigmoid'),
}


@pytest.mark.parametrize('case', LOSSES)
def test_the_losses_say_what_the_scores_are(case: str) -> None:
    init_default_scope('mmseg')
    losses, kind = LOSSES[case]
    head = FCNHead(
        in_channels=8, channels=8, num_classes=4, num_convs=1, loss_decode=losses
    )
    assert _kind(head) == kind


def test_a_single_channel_is_a_sigmoid_whatever_its_loss_says() -> None:
    # the divergence of a softmax over one class is 0
    init_default_scope('mmseg')
    head = FCNHead(
        in_channels=8,
        channels=8,
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        num_convs=1,
        loss_decode=dict(type='LovaszLoss', loss_type='binary', reduction='none'),
    )
    assert _kind(head) == 'sigmoid'


def test_a_loss_of_the_scenes_classes_has_no_say() -> None:
    head = EncHead(
        in_channels=[8, 8, 8],
        in_index=(0, 1, 2),
        channels=8,
        num_classes=4,
        loss_decode=dict(type='DiceLoss', use_sigmoid=False),
    )
    assert head.loss_se_decode.use_sigmoid
    assert _kind(head) == 'softmax'


def test_two_channels_of_two_classes_in_one_are_read_too() -> None:
    model: Any = nn.Module()
    model.extract_feat = lambda x: x
    model.backbone = nn.Identity()
    model.decode_head = DAHead(
        in_channels=8,
        channels=8,
        pam_channels=4,
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        norm_cfg=dict(type='BN'),
        loss_decode=SIGMOID,
    )
    site = find_plan(model).site('logits')
    assert site is not None
    output = model.decode_head([torch.rand(2, 8, 6, 6)])
    side = Side(model, [Call('decode_head.forward', 0, (), {}, output=output)], None)
    read = [(each.at(None).shape[1], each.kind) for each in site.read(side)]
    # of both attentions together, and of each: its own losses train all three
    assert read == [(1, 'sigmoid'), (2, 'sigmoid'), (2, 'sigmoid')]


@pytest.mark.parametrize('size', [(5, 7), (64, 64), (1, 1), (31, 13)])
def test_labels_are_looked_up_at_any_resolution(
    deeplab: Any, size: tuple[int, int]
) -> None:
    output = torch.rand(2, CLASSES, *size)
    call = Call('decode_head.forward', 0, (), {}, output=output)
    side = Side(deeplab.teacher, [call], deeplab.data['data_samples'])
    (rows,) = deeplab.site('logits').weigh(side)
    expected = labelled(labels_of(deeplab), *size, ignore=255)
    assert torch.equal(rows.weight, expected)


def with_labels(iteration: Any, labels: Tensor) -> dict[str, Any]:
    data = dict(iteration.data)
    data['data_samples'] = [sample.clone() for sample in data['data_samples']]
    for sample, label in zip(data['data_samples'], labels):
        sample.gt_sem_seg.data = label[None]
    return data


def test_a_head_has_its_own_ignored_label(
    deeplab: Any, digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    labels = labels_of(deeplab) % CLASSES
    assert 255 not in labels
    model = digits(SEGFORMER, decode_head__ignore_index=3)
    (pair,) = iterate(model, with_labels(deeplab, labels)).read('logits')
    assert torch.equal(pair.weight, labelled(labels, 16, 16, ignore=3))
    assert pair.weight.sum() < pair.weight.numel()


def test_one_channel_is_a_sigmoid(
    deeplab: Any, digits: Callable[..., Any], iterate: Callable[..., Any]
) -> None:
    model = digits(
        SEGFORMER,
        decode_head__num_classes=2,
        decode_head__out_channels=1,
        decode_head__threshold=0.5,
        decode_head__loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    data = with_labels(deeplab, labels_of(deeplab) % 2)
    (pair,) = iterate(model, data).read('logits')
    assert pair.student.shape == (2, 1, 16, 16)
    assert pair.kind == 'sigmoid'


@pytest.mark.parametrize('labels', [True, False])
def test_a_teacher_that_says_the_labels_gives_the_heads_own_loss(
    digits: Callable[..., Any], iterate: Callable[..., Any], labels: bool
) -> None:
    # a sigmoid of each class: the head's loss is a mean over pixels and classes
    loss = dict(SIGMOID, _delete_=True)
    model = digits(SEGFORMER, decode_head__loss_decode=loss)
    name = 'logits' if labels else 'pseudo_labels'
    (pair,) = iterate(model, labels=labels).read(name)
    hot = F.one_hot(torch.randint(CLASSES, (2, 16, 16)), CLASSES).movedim(3, 1).float()
    own = F.binary_cross_entropy_with_logits(pair.student, hot, reduction='none')
    counted = torch.ones(2, 16, 16) if pair.weight is None else pair.weight
    assert (counted.mean() < 1) == labels
    expected = (own.mean(1) * counted).sum() / counted.sum()
    found = SoftTargetLoss()(pair.student, 60 * hot - 30, kind=pair.kind)
    torch.testing.assert_close(reduced(found, pair.weight, pair.norm), expected)


DICE: dict[str, Any] = dict(type='DiceLoss', loss_name='loss_dice')
FOCAL: dict[str, Any] = dict(type='FocalLoss', use_sigmoid=True)
TRAINED_BY: dict[str, tuple[Any, str]] = {
    'softmax': (SOFTMAX, 'softmax'),
    'sigmoid': (SIGMOID, 'sigmoid'),
    'dice': (DICE, 'sigmoid'),
    'dice of softmax': (dict(**DICE, use_sigmoid=False), 'softmax'),
    'focal': (FOCAL, 'sigmoid'),
    'softmax and dice': ([SOFTMAX, DICE], 'softmax'),
    'dice and softmax': ([DICE, SOFTMAX], 'softmax'),
    'sigmoid and dice': ([SIGMOID, DICE], 'sigmoid'),
    'focal and dice': ([FOCAL, DICE], 'sigmoid'),
}


@pytest.mark.parametrize('name', TRAINED_BY)
def test_classes_are_compared_as_the_losses_take_them(
    digits: Callable[..., Any], iterate: Callable[..., Any], name: str
) -> None:
    loss, kind = TRAINED_BY[name]
    whole = loss if isinstance(loss, list) else dict(_delete_=True, **loss)
    model = digits(SEGFORMER, decode_head__loss_decode=whole)
    if 'focal' in name:
        # mmseg computes it on a GPU alone
        output = torch.rand(2, CLASSES, 4, 4)
        call = Call('decode_head.forward', 0, (), {}, output=output)
        (found,) = find_plan(model).sites[-1].read(Side(model, [call], []))
    else:
        (found,) = iterate(model).read('logits')
        assert found.student.shape[1] == CLASSES
    assert found.kind == kind


@pytest.fixture(scope='module')
def cascade(digits: Callable[..., Any], iterate: Callable[..., Any]) -> Any:
    return iterate(digits(DEEPLAB, **CASCADE))


def test_later_stages_of_a_cascade_see_the_teachers_earlier_ones(cascade: Any) -> None:
    pairs = cascade.read('logits')
    first, second = pairs[0], pairs[-1]
    teacher = cascade.teacher
    with torch.no_grad():
        feats = teacher.extract_feat(cascade.data['inputs'])
        coarse = teacher.decode_head[0](feats)
        fine = teacher.decode_head[1](feats, coarse)
        other = teacher.decode_head[1](feats, first.student)
    assert torch.equal(first.teacher, coarse)
    assert torch.equal(second.teacher, fine)
    assert not torch.equal(fine, other)
    expected = labelled(labels_of(cascade), 8, 8, ignore=255)
    for pair in pairs:
        assert torch.equal(pair.weight, expected)


def test_a_cascade_has_a_pair_a_stage(cascade: Any) -> None:
    shapes = [tuple(pair.student.shape) for pair in cascade.read('logits')]
    assert shapes == [(2, CLASSES, 8, 8)] * 2


DEPTH: dict[str, Any] = dict(
    type='DepthEstimator',
    auxiliary_head=None,
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        base_channels=16,
        num_stages=4,
        norm_cfg=dict(type='BN'),
    ),
    # of VPD, whose backbone is Stable Diffusion
    decode_head=dict(
        type='VPDDepthHead',
        in_channels=[16, 32, 64, 128],
        embed_dim=16,
        feature_dim=128,
        num_deconv_filters=(16, 16, 16),
    ),
)


def test_depth_is_left_out_and_named_while_features_are_compared(
    digits: Callable[..., Any],
) -> None:
    digits(SEGFORMER)  # mmseg's scope
    torch.manual_seed(0)
    model: Any = MODELS.build(DEPTH)
    still(model)
    samples = [
        SegDataSample(gt_depth_map=PixelData(data=1 + 9 * torch.rand(1, 64, 64)))
        for _ in '12'
    ]
    for sample in samples:
        sample.set_metainfo(dict(img_shape=(64, 64)))
    distiller = build_distiller(model)
    assert [site.name for site in distiller.labeled.plan.sites] == ['features']
    assert distiller.labeled.plan.skipped.keys() == {'decode_head'}
    distiller.teacher = make_teacher(model)
    distiller.attach()
    images = torch.rand(2, 3, 64, 64)
    losses = model(images, samples, mode='loss')
    ours = {'loss_sd_features', 'sd_features', 'sd_features_weight'}
    assert losses.keys() == {'decode.loss_silog', *ours}
    assert float(losses['loss_sd_features'].detach()) == 0.0
    with torch.no_grad():
        distiller.teacher.get_parameter('backbone.layer4.1.conv2.weight').mul_(2)
    term = model(images, samples, mode='loss')['loss_sd_features']
    (gradient,) = torch.autograd.grad(term, model.backbone.stem[0].weight)
    assert float(term.detach()) > 1e-4
    assert gradient.abs().sum() > 0
