"""The frameworks' training pipelines, without their annotations."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.utils import get_installed_path
from torch import Tensor

from mmselfdistill.hooks.unlabeled import transforms_of
from mmselfdistill.images import Batches, PipelineError, image_pipeline

LOAD: list[Any] = [dict(type='LoadImageFromFile')]
BOXES = dict(type='LoadAnnotations', with_bbox=True)
PACK = dict(type='PackDetInputs')


def steps_of(dataset: Any) -> list[Any]:
    """Return the transforms of a config, those of the dataset inside first."""
    inner = dataset.get('dataset')
    own = list(dataset.get('pipeline', ()))
    return [*steps_of(inner), *own] if inner else own


def stock(name: str) -> list[Any]:
    zoo, path = name.split('::')
    if zoo == 'mmseg':
        from mmseg.utils import register_all_modules

        register_all_modules(False)
    init_default_scope(zoo)
    cfg = Config.fromfile(f'{get_installed_path(zoo)}/.mim/configs/{path}.py')
    return steps_of(cfg.train_dataloader.dataset)


def items(
    pipeline: list[Any], folder: Path, count: int = 4
) -> list[tuple[Tensor, Any]]:
    batch = next(Batches([str(folder / 'wide.png')], pipeline, count, seed=1))
    return list(zip(batch['inputs'], batch['data_samples']))


@pytest.fixture
def wide(folder: Path, picture: Callable[..., Path]) -> str:
    return str(picture(folder / 'wide.png', 48, 96))


# what is left out, what is kept, and the size: at most, where it is drawn
STOCK: dict[str, tuple[str, str, tuple[int, int] | int]] = {
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco': (
        'CachedMosaic CachedMixUp',
        'RandomResize RandomCrop YOLOXHSVRandomAug RandomFlip Pad',
        (640, 640),
    ),
    'mmdet::yolox/yolox_s_8xb8-300e_coco': (
        'Mosaic RandomAffine MixUp',
        'YOLOXHSVRandomAug RandomFlip Resize Pad FilterAnnotations',
        (640, 640),
    ),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco': (
        '',
        'Resize RandomFlip',
        (667, 1333),
    ),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco': (
        '',
        'RandomFlip RandomResize RandomCrop FilterAnnotations',
        1024,
    ),
    'mmdet::ssd/ssd300_coco': (
        '',
        'Expand MinIoURandomCrop Resize RandomFlip PhotoMetricDistortion',
        (300, 300),
    ),
    'mmdet::detr/detr_r50_8xb2-150e_coco': ('', 'RandomFlip RandomChoice', 1333),
    'mmseg::_base_/datasets/cityscapes': (
        '',
        'RandomResize RandomCrop RandomFlip PhotoMetricDistortion',
        (512, 1024),
    ),
    'mmseg::_base_/datasets/ade20k': (
        '',
        'RandomResize RandomCrop RandomFlip PhotoMetricDistortion',
        512,
    ),
}


@pytest.mark.parametrize('built', [False, True], ids=['config', 'built'])
@pytest.mark.parametrize('name', STOCK)
def test_stock_pipelines(name: str, built: bool, folder: Path, wide: str) -> None:
    dropped, kept, size = STOCK[name]
    cfg = stock(name)
    before = copy.deepcopy(cfg)
    # a hook is given the transforms of a dataset, which are built
    given = [TRANSFORMS.build(each) for each in cfg] if built else cfg
    pipeline, found = image_pipeline(given, wide)
    assert cfg == before
    assert found == dropped.split()
    assert [type(each).__name__ for each in pipeline[2:-1]] == kept.split()
    sizes = set()
    for image, sample in items(pipeline, folder):
        assert image.shape[0] == 3
        assert tuple(sample.img_shape) == image.shape[1:]
        sizes.add(tuple(image.shape[1:]))
        (assert_no_map if 'mmseg' in name else assert_no_objects)(image, sample)
        masks = getattr(sample.get('gt_instances'), 'masks', None)
        assert (masks is not None) == ('mask' in name)
        assert masks is None or (masks.height, masks.width) == image.shape[1:]
    if isinstance(size, tuple):
        assert sizes == {size}
    else:
        assert len(sizes) > 1 and max(map(max, sizes)) <= size


def assert_no_map(image: Tensor, sample: Any) -> None:
    assert sample.gt_sem_seg.shape == image.shape[1:]
    assert not sample.gt_sem_seg.data.any()


def assert_no_objects(_: Tensor, sample: Any) -> None:
    assert sample.gt_instances.bboxes.shape == (0, 4)
    assert sample.gt_instances.labels.shape == (0,)
    assert len(sample.ignored_instances) == 0 and 'gt_sem_seg' not in sample


def test_a_crop_without_objects_still_crops(folder: Path, wide: str) -> None:
    crop = dict(type='RandomCrop', crop_size=(20, 10))
    choice = dict(type='RandomChoice', transforms=[[crop], [crop]])
    apply = dict(type='RandomApply', transforms=[crop], prob=1.0)
    whole: Any = cv2.imread(wide)
    for step in (crop, choice, apply):
        pipeline, dropped = image_pipeline([*LOAD, BOXES, step, PACK], wide)
        assert dropped == []
        places = set()
        for image, _ in items(pipeline, folder, 12):
            assert image.shape == (3, 10, 20)
            part = image.numpy().transpose(1, 2, 0)
            found = cv2.matchTemplate(whole, part, cv2.TM_SQDIFF)
            _, _, (x, y), _ = cv2.minMaxLoc(found)
            assert np.array_equal(whole[y : y + 10, x : x + 20], part)
            places.add((x, y))
        assert len(places) > 6


@TRANSFORMS.register_module()
class LoadOwnAnnotations:
    def __call__(self, results: Any) -> Any:
        raise AssertionError('there is nothing to load')


@pytest.mark.parametrize(
    ('loader', 'boxes', 'masks', 'seg'),
    [
        (dict(type='LoadAnnotations'), True, False, False),
        (dict(type='LoadAnnotations', with_mask=True), True, True, False),
        (dict(type='LoadAnnotations', with_bbox=False), False, False, False),
        # masks do not come without the boxes around them
        (
            dict(type='LoadAnnotations', with_bbox=False, with_mask=True),
            True,
            True,
            False,
        ),
        (
            dict(type='LoadAnnotations', with_bbox=True, with_seg=True),
            True,
            False,
            True,
        ),
        (dict(type='LoadEmptyAnnotations', with_mask=True), True, True, False),
        (dict(type='mmseg.LoadAnnotations'), False, False, True),
        # it does not say what it loads
        (dict(type='LoadOwnAnnotations'), False, False, True),
    ],
)
def test_no_objects_of_the_kinds_that_would_be_loaded(
    loader: dict[str, Any], boxes: bool, masks: bool, seg: bool, folder: Path, wide: str
) -> None:
    for given in (loader, TRANSFORMS.build(loader)):
        pipeline, dropped = image_pipeline([*LOAD, given, PACK], wide)
        assert dropped == []
        ((_, sample),) = items(pipeline, folder, 1)
        assert ('bboxes' in sample.gt_instances) == boxes
        assert ('masks' in sample.gt_instances) == masks
        assert ('gt_sem_seg' in sample) == seg


def test_a_border_is_cut_off_where_there_was_no_mosaic(folder: Path, wide: str) -> None:
    affine = dict(type='RandomAffine', border=(-4, -6))
    for mosaic in (False, True):
        mixes = [dict(type='Mosaic')] if mosaic else []
        pipeline, dropped = image_pipeline([*LOAD, BOXES, *mixes, affine, PACK], wide)
        assert dropped == (['Mosaic', 'RandomAffine'] if mosaic else [])
        ((image, _),) = items(pipeline, folder, 1)
        assert image.shape == ((3, 48, 96) if mosaic else (3, 36, 88))


def test_a_number_is_no_border_that_cuts(folder: Path, wide: str) -> None:
    crop = dict(
        type='RandomCenterCropPad',
        crop_size=(32, 32),
        ratios=(1.0,),
        mean=[0, 0, 0],
        std=[1, 1, 1],
        to_rgb=True,
        border=8,
        test_pad_mode=None,
    )
    given = [*LOAD, BOXES, dict(type='Mosaic'), dict(type='Resize', scale=(32, 32))]
    _, dropped = image_pipeline([*given, crop, PACK], wide)
    # this one needs objects
    assert dropped == ['Mosaic', 'RandomCenterCropPad']


class LoadOwnMap:
    """Needs a file of labels, and its name says not that it loads annotations."""

    def __call__(self, results: Any) -> Any:
        results['gt_seg_map'] = cv2.imread(results['seg_map_path'])
        return results


@pytest.mark.parametrize('loader', [None, LoadOwnMap(), 'LoadAnnotations'])
def test_what_a_segmentors_transforms_make_up_is_marked(
    loader: Any, folder: Path, wide: str
) -> None:
    init_default_scope('mmseg')
    own = [dict(type=loader)] if isinstance(loader, str) else [loader] * bool(loader)
    pad = dict(type='Pad', size=(128, 64), pad_val=dict(img=0, seg=255))
    given = [*LOAD, *own, pad, dict(type='PackSegInputs')]
    pipeline, dropped = image_pipeline(given, wide, own=loader is None)
    assert dropped == (['LoadOwnMap'] if isinstance(loader, LoadOwnMap) else [])
    ((_, packed),) = items(pipeline, folder, 1)
    made_up = packed.gt_sem_seg.data[0] == 255
    assert not made_up[:48, :96].any()
    assert int(made_up.sum()) == 64 * 128 - 48 * 96


class LoadScale:
    """Loads no image, though it is named as if."""

    def __call__(self, results: Any) -> Any:
        return dict(results, scale=2)


def test_a_map_is_added_to_the_image_whatever_is_loaded_before(
    folder: Path, wide: str
) -> None:
    init_default_scope('mmseg')
    pad = dict(type='Pad', size=(128, 64), pad_val=dict(img=0, seg=255))
    given = [LoadScale(), *LOAD, pad, dict(type='PackSegInputs')]
    pipeline, dropped = image_pipeline(given, wide)
    assert dropped == []
    ((_, packed),) = items(pipeline, folder, 1)
    assert int((packed.gt_sem_seg.data[0] == 255).sum()) == 64 * 128 - 48 * 96


@pytest.mark.parametrize('own', [True, False])
def test_one_transform_may_load_and_pack(own: bool, folder: Path, wide: str) -> None:
    def load(results: Any) -> Any:
        image = cv2.imread(results['img_path'])
        return pack(dict(results, img=image))

    init_default_scope('mmdet')
    pack = TRANSFORMS.build(dict(PACK, meta_keys=('img_path',)))
    pipeline, _ = image_pipeline([load], wide, own)
    ((image, _),) = items(pipeline, folder, 1)
    assert tuple(image.shape) == (3, 48, 96)


class Fails:
    """Needs objects, in one of some calls."""

    def __init__(self, share: float, how: str) -> None:
        self.share = share
        self.how = how

    def __call__(self, results: Any) -> Any:
        if random.random() < self.share and np.random.rand() < self.share:
            return results['gt_bboxes'][3] if self.how == 'raises' else None
        results['steps'] = [*results.get('steps', []), self.how]
        return results


class Adds:
    """Changes the image, and what it was given, in place."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, results: Any) -> Any:
        self.seen.append(int(results['img'][0, 0, 0]))
        results['img'] += 1
        return results


@pytest.mark.parametrize('how', ['raises', 'none'])
@pytest.mark.parametrize('share', [0.7, 1.0])
def test_what_fails_without_objects_is_left_out(
    how: str, share: float, folder: Path, wide: str
) -> None:
    given = [*LOAD, BOXES, Fails(share, how), Fails(0.0, how), PACK]
    pipeline, dropped = image_pipeline(given, wide)
    assert dropped == ['Fails']
    assert pipeline[2] is given[3]
    assert len(items(pipeline, folder, 20)) == 20


def test_each_trial_begins_with_the_same_image(folder: Path, wide: str) -> None:
    first, second = Adds(), Adds()
    pipeline, _ = image_pipeline([*LOAD, BOXES, first, second, PACK], wide)
    whole: Any = cv2.imread(wide)
    value = int(whole[0, 0, 0])
    assert set(first.seen) == {value} and set(second.seen) == {value + 1}
    ((image, _),) = items(pipeline, folder, 1)
    assert int(image[0, 0, 0]) == value + 2


def test_a_trial_moves_no_random_stream_and_is_always_the_same(wide: str) -> None:
    outcomes = []
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        unsure: list[Any] = [Fails(0.3, 'none') for _ in range(9)]
        pipeline, _ = image_pipeline([*LOAD, BOXES, *unsure, PACK], wide)
        outcomes.append([unsure.index(each) for each in pipeline[2:-1]])
        assert random.getstate() == states[0]
        assert np.array_equal(np.random.get_state()[1], states[1][1])  # type: ignore[index]
        assert torch.equal(torch.get_rng_state(), states[2])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert 0 < len(outcomes[0]) < 9


def test_an_image_that_cannot_be_read(folder: Path) -> None:
    broken = folder / 'broken.png'
    broken.write_text('no image')
    with pytest.raises(AssertionError, match=r'failed to load image: .*broken\.png'):
        image_pipeline([*LOAD, BOXES, PACK], str(broken))
    with pytest.raises(FileNotFoundError, match=r'missing\.png'):
        image_pipeline([*LOAD, BOXES, PACK], str(folder / 'missing.png'))


def test_a_pipeline_that_loads_no_image(wide: str) -> None:
    # MNIST's dataset gives arrays
    with pytest.raises(
        ValueError, match=r'^no transform of it loads an image$'
    ) as error:
        image_pipeline([lambda results: dict(results, step=1)], wide)
    assert not isinstance(error.value, PipelineError)


def test_a_pipeline_must_end_in_what_a_model_takes(wide: str) -> None:
    end = r'^unlabeled\.pipeline: it does not end in an image and a data sample, .*'
    with pytest.raises(ValueError, match=end + r'left out were \[\]'):
        image_pipeline([*LOAD, BOXES], wide)
    with pytest.raises(ValueError, match=end + r"left out were \['Fails'\]"):
        image_pipeline([*LOAD, BOXES, Fails(1.0, 'none')], wide)
    with pytest.raises(ValueError, match=end):
        image_pipeline([*LOAD, lambda _: dict(inputs=[], data_samples=[])], wide)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='Resize', scale='(64, 64)'), r'Resize cannot be .*wide\.png.*: err'),
        (dict(type='Mosaic'), 'Mosaic cannot be applied .*: it mixes several images'),
        (Fails(1.0, 'none'), 'Fails cannot be .*: it rejects the image$'),
        (dict(type='Resise'), "'Resise' cannot be built: KeyError: .*not in the"),
        (
            dict(type='Resize', scales=2),
            "'Resize' cannot be built: TypeError: .*scales",
        ),
    ],
    ids=['fails', 'mixes', 'rejects', 'unknown', 'argument'],
)
def test_nothing_of_an_own_pipeline_is_left_out(
    step: Any, message: str, wide: str
) -> None:
    init_default_scope('mmdet')
    with pytest.raises(PipelineError, match=rf'^unlabeled\.pipeline: {message}'):
        image_pipeline([*LOAD, BOXES, step, PACK], wide, own=True)
    # not of an image that cannot be read: another may be tried
    empty = dict(type='LoadImageFromFile', ignore_empty=True)
    with pytest.raises(ValueError, match=r'^LoadImageFromFile: it rejects') as error:
        image_pipeline([empty, PACK], f'{wide}.missing', own=True)
    assert not isinstance(error.value, PipelineError)
    kept, dropped = image_pipeline([*LOAD, BOXES, PACK], wide, own=True)
    assert len(kept) == 3 and dropped == []


def test_of_several_branches_the_first_is_taken(wide: str) -> None:
    resize = dict(type='Resize', scale=(32, 32))
    branches = dict(sup=[Fails(1.0, 'none'), resize, PACK], unsup_teacher=PACK)
    multi = dict(type='MultiBranch', branch_field=[*branches], **branches)
    pipeline, dropped = image_pipeline([*LOAD, BOXES, multi], wide)
    assert dropped == ['Fails']
    results = dict(img_path=wide, img_id=0)
    for transform in pipeline:
        results = transform(results)
    assert results['inputs'].shape == (3, 32, 32)


def test_the_transforms_of_the_labels_are_not_shared(wide: str) -> None:
    crop = dict(type='RandomCrop', crop_size=(8, 8))
    inner = dict(
        type='CocoDataset',
        serialize_data=False,
        lazy_init=True,
        pipeline=[*LOAD, BOXES],
    )
    wrapped = dict(type='RepeatDataset', dataset=inner, times=2, lazy_init=True)
    many = dict(type='ConcatDataset', datasets=[wrapped, inner], lazy_init=True)
    dataset = DATASETS.build(many)
    own = [TRANSFORMS.build(each) for each in (dict(type='Mosaic'), crop, PACK)]
    outer = type('Outer', (), dict(dataset=dataset, pipeline=own))()
    found: list[Any] = transforms_of(outer)
    names = ['LoadImageFromFile', 'LoadAnnotations', 'Mosaic', 'RandomCrop']
    assert [type(each).__name__ for each in found] == [*names, 'PackDetInputs']
    pipeline, dropped = image_pipeline(found, wide)
    # the labelled loader goes on to turn crops without objects down
    assert found[3].allow_negative_crop and not own[1].allow_negative_crop
    assert not {id(each) for each in found} & {id(each) for each in own}
    assert dropped == ['Mosaic'] and pipeline[2] is found[3]
