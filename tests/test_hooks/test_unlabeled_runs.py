"""Runs with images without labels and with views."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from test_resume import compare
from torch.nn.parallel import DistributedDataParallel

from mmselfdistill.hooks.run import seed_of_all_ranks
from mmselfdistill.hooks.unlabeled import check_unlabeled, load_unlabeled
from mmselfdistill.views import View

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

EMA = dict(type='mmselfdistill.EMATeacherHook', momentum=0.5, schedule='constant')
VIEW = dict(brightness=0.5, contrast=0.5, noise=0.2, blur=1.0, erase=0.2, mask=0.2)
SURE = dict(threshold=0.0)
DENSE = {'features', 'logits', 'boxes'}
PROPOSALS = {'proposals', 'proposal_boxes'}
# which terms apply on images without labels
APPLY: dict[str, set[str]] = dict(
    retinanet=DENSE,
    gfl=DENSE,
    faster_rcnn=DENSE | PROPOSALS,
    mask_rcnn=DENSE | PROPOSALS | {'masks'},
    cascade_mask_rcnn=DENSE | PROPOSALS | {'masks'},
    deeplabv3plus={'pseudo_labels'},
    segformer={'pseudo_labels'},
)


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> str:
    """Return a folder of images and nothing else."""
    target = tmp_path / 'unlabeled'
    shutil.copytree(scenes / 'train2017', target)
    return str(target)


def values(runner: Runner, key: str) -> list[float]:
    return [float(v) for v in runner.message_hub.get_scalar(f'train/{key}').data[0]]


@pytest.mark.parametrize('name', APPLY)
def test_every_family_learns_from_a_folder(name: str, runs: Runs, folder: str) -> None:
    # random weights are sure of nothing
    terms = dict(pseudo_labels=SURE) if APPLY[name] == {'pseudo_labels'} else None
    hook = dict(EMA, terms=terms, unlabeled=dict(data=folder, batch_size=3))
    runner = runs.train(runs.config(name, hook, iters=2))
    ours = [key[14:] for key in runner.message_hub.log_scalars if 'loss_sd_' in key]
    found = {key[: -len('_unlabeled')] for key in ours if key.endswith('_unlabeled')}
    assert found == APPLY[name]
    for term in found:
        assert 0 not in values(runner, f'loss_sd_{term}_unlabeled')
    unlabeled = runs.hook(runner).distiller.unlabeled
    assert unlabeled.used == 2
    shapes = unlabeled.comparison.shapes
    assert shapes['features' if 'features' in found else 'pseudo_labels'][0][:2] == '3x'


def test_no_process_outlives_the_training(runs: Runs, folder: str) -> None:
    before = multiprocessing.active_children()
    seen: list[int] = []

    def count(_: Runner) -> None:
        seen.append(len(multiprocessing.active_children()) - len(before))

    hook = dict(EMA, unlabeled=dict(data=folder, num_workers=2))
    runner = runs.train(runs.config('gfl', hook, iters=2), after=count)
    assert seen == [2, 2]
    assert multiprocessing.active_children() == before
    assert runs.hook(runner).distiller.unlabeled.used == 2


def test_without_a_view_the_first_terms_are_0(runs: Runs, folder: str) -> None:
    # the student's norms go by the batch
    hook = dict(EMA, unlabeled=dict(data=folder, view=None), teacher_norm='batch')
    runner = runs.train(runs.config('gfl', hook, iters=2))
    for term in DENSE:
        first, second = values(runner, f'loss_sd_{term}_unlabeled')
        assert first == 0 < second


def test_weight_0_is_the_run_without(runs: Runs, folder: str) -> None:
    found = []
    for unlabeled in (None, dict(data=folder, weight=0)):
        cfg = runs.config('retinanet', dict(EMA, unlabeled=unlabeled), iters=3)
        found.append(runs.state(runs.train(cfg).model))
    assert runs.differences(*found) == []


@pytest.mark.parametrize('fixed', [True, False])
def test_batch_augmentations_that_draw_are_the_students_alone(
    runs: Runs, folder: str, fixed: bool
) -> None:
    resize = dict(
        type='BatchSyncRandomResize', random_size_range=(128, 128), interval=1
    )
    pad = dict(type='BatchFixedSizePad', size=(96, 96))
    hook = dict(EMA, unlabeled=dict(data=folder, batch_size=1))
    cfg = runs.config('retinanet', hook, iters=2)
    cfg.model.data_preprocessor.batch_augments = [pad] if fixed else [resize]
    shapes: list[tuple[int, ...]] = []

    def note(runner: Runner) -> None:
        if not shapes:
            student: Any = runner.model
            student.backbone.register_forward_pre_hook(
                lambda _, inputs: shapes.append(tuple(inputs[0].shape))
            )
            shapes.append(())

    runner = runs.train(cfg, before=note)
    sides = [96] * 4 if fixed else [64, 64, 128, 64]
    assert shapes[1:] == [(2 - i % 2, 3, s, s) for i, s in enumerate(sides)]
    student: Any = runner.model
    assert len(student.data_preprocessor.batch_augments) == 1
    named = runs.log(runner).count('Left out of the pipeline: BatchSyncRandomResize.')
    assert named == (not fixed)


def test_checkpointed_activations_in_ddp_are_refused(
    runs: Runs, folder: str, tmp_path: Path
) -> None:
    settings = check_unlabeled(dict(data=folder))
    assert settings is not None
    store = f'file://{tmp_path}/store'
    dist.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    try:
        for with_cp in (False, True):
            cfg = runs.config('deeplabv3plus', iters=2)
            cfg.model.backbone.with_cp = with_cp
            runner = runs.build(cfg)
            runner.model = DistributedDataParallel(runner.model)
            if with_cp:
                message = r'\(backbone, and 8 more\), which fails in DDP'
                with pytest.raises(ValueError, match=message):
                    load_unlabeled(settings, runner)
            else:
                assert load_unlabeled(settings, runner).keys() >= {'batches'}
    finally:
        dist.destroy_process_group()


def test_images_without_labels_change_the_weights(runs: Runs, folder: str) -> None:
    found = []
    for unlabeled in (None, dict(data=folder)):
        cfg = runs.config('retinanet', dict(EMA, unlabeled=unlabeled), iters=3)
        found.append(runs.state(runs.train(cfg).model))
    assert runs.differences(*found) != []


@pytest.mark.usefixtures('stock_resumes_in_iterations')
@pytest.mark.parametrize('begin', [0.0, 0.5])
def test_resumed_bitwise(begin: float, runs: Runs, folder: str) -> None:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    unlabeled = dict(data=folder, view=VIEW, pipeline=pipeline, num_workers=1)
    schedule = dict(type='constant', begin=begin)
    hook = dict(EMA, view=VIEW, unlabeled=unlabeled, schedule=schedule)
    expected = compare(runs, lambda: runs.config('retinanet', hook, iters=6), [2, 4])
    assert expected['mmselfdistill']['unlabeled'] == 6 - int(6 * begin)


def test_generations(runs: Runs, folder: str) -> None:
    schedule = dict(type='linear', start=1.0, stop=0.0, over='run')
    hook = dict(
        type='mmselfdistill.GenerationHook',
        interval=2,
        by_epoch=False,
        schedule=schedule,
        unlabeled=dict(data=folder),
    )
    runner = runs.train(runs.config('gfl', hook, iters=6))
    # the first generation has no teacher; then what is left of the run
    weights = [0, 0, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert values(runner, 'sd_logits_weight') == pytest.approx(weights)
    assert values(runner, 'sd_logits_unlabeled_weight') == pytest.approx(weights)
    losses = values(runner, 'loss_sd_logits_unlabeled')
    assert losses[:2] == [0, 0] and min(losses[2:]) > 0
    assert runs.hook(runner).distiller.unlabeled.used == 4


WRONG: dict[str, tuple[Any, str]] = {
    'no data': (dict(weight=1.0), 'unlabeled: expected a dict with the data'),
    'a folder alone': ('folder', 'unlabeled: expected a dict with the data'),
    'key': (dict(data='x', wieght=1), "unlabeled: unknown 'wieght'; did you mean"),
    'no folder': (dict(data='nowhere'), "unlabeled.data: there is no folder 'nowhere'"),
    'weight': (dict(data='x', weight=-1), 'unlabeled.weight: expected a number >= 0'),
    'size': (dict(data='x', batch_size=0), 'unlabeled.batch_size: expected an integer'),
    'view': (dict(data='x', view=dict(blurr=1)), "unlabeled.view: unknown 'blurr'"),
    'flag': (dict(data='x', statistics=1), 'unlabeled.statistics: expected True or'),
    'share': (dict(data='x', confidence=2), 'unlabeled.confidence: expected a number'),
    'all': (dict(data='x', confidence=1.0), 'unlabeled.confidence: expected a number'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_end_before_the_first_step(case: str, runs: Runs) -> None:
    unlabeled, message = WRONG[case]
    steps: list[int] = []
    with pytest.raises(ValueError, match=message.replace('(', r'\(')):
        cfg = runs.config('gfl', dict(EMA, unlabeled=unlabeled), iters=1)
        runs.train(cfg, lambda runner: steps.append(runner.iter))
    assert steps == []


@TRANSFORMS.register_module()
class Locked:
    """A transform that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return results


def test_a_transform_that_cannot_be_copied_is_named(runs: Runs, folder: str) -> None:
    cfg = runs.config('gfl', dict(EMA, unlabeled=dict(data=folder)), iters=1)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Locked'))
    message = r'unlabeled: Locked of the training pipeline cannot be copied \(TypeErr'
    with pytest.raises(ValueError, match=message):
        runs.train(cfg)


def test_a_model_that_needs_more_than_images_is_refused(
    runs: Runs, folder: str
) -> None:
    cfg = runs.config('faster_rcnn', dict(EMA, unlabeled=dict(data=folder)), iters=1)
    cfg.model.type = 'FastRCNN'
    del cfg.model.rpn_head
    steps: list[int] = []
    message = 'FastRCNN does not run on images without labels: it needs proposals that'
    with pytest.raises(ValueError, match=f'^unlabeled: {message} are loaded with each'):
        runs.train(cfg, lambda runner: steps.append(runner.iter))
    assert steps == []


def test_a_detector_has_no_pixels_to_be_sure_of(runs: Runs, folder: str) -> None:
    unlabeled = dict(data=folder, confidence=0.968)
    message = r'^unlabeled.confidence: a single-stage detector \(GFL\) has no pixels'
    with pytest.raises(ValueError, match=message):
        runs.train(runs.config('gfl', dict(EMA, unlabeled=unlabeled), iters=1))


def test_a_confidence_that_no_term_uses_is_refused(runs: Runs, folder: str) -> None:
    terms = dict(pseudo_labels=None, features=dict(on='both'))
    unlabeled = dict(data=folder, confidence=0.9)
    cfg = runs.config(
        'deeplabv3plus', dict(EMA, terms=terms, unlabeled=unlabeled), iters=1
    )
    message = r"no term on .* uses it; add one at the site 'logits' or 'pseudo_labels'"
    with pytest.raises(ValueError, match=f'^unlabeled.confidence: {message}'):
        runs.train(cfg)


def test_a_view_is_merged_over_the_default() -> None:
    def view_of(**cfg: Any) -> Any:
        checked = check_unlabeled(dict(data='x', **cfg))
        assert checked is not None
        return checked['view']

    default = View(brightness=0.5, contrast=0.5, color=0.5, blur=1.0, erase=0.1)
    assert view_of() == view_of(view={}) == default
    changed = view_of(view=dict(cutmix=0.5, erase=0))
    assert changed == replace(default, cutmix=0.5, erase=0.0)
    assert view_of(view=dict(_delete_=True, mask=0.5)) == View(mask=0.5)
    assert view_of(view=None) is view_of(view=dict(_delete_=True)) is None


def test_images_without_a_sure_pixel_teach_no_classes(runs: Runs, folder: str) -> None:
    found = {}
    for confidence in (None, 0.0, 0.999):
        unlabeled = dict(data=folder, confidence=confidence)
        hook = dict(EMA, terms=dict(pseudo_labels=SURE), unlabeled=unlabeled)
        runner = runs.train(runs.config('segformer', hook, iters=2))
        found[confidence] = runs.state(runner.model)
        terms = values(runner, 'loss_sd_pseudo_labels_unlabeled')
        # random weights are not as sure
        assert (terms == [0, 0]) == (confidence == 0.999)
    assert runs.differences(found[None], found[0.0]) == []
    assert runs.differences(found[None], found[0.999]) != []


def test_a_broken_image_ends_the_run_or_is_counted(runs: Runs, folder: str) -> None:
    Path(folder, '0.jpg').write_bytes(b'no image')
    Path(folder, 'notes.txt').write_text('no image either')
    unlabeled = dict(data=folder, batch_size=7, num_workers=0)

    def skipping() -> list[float]:
        hook = dict(EMA, unlabeled=dict(unlabeled, skip_broken=True))
        runner = runs.train(runs.config('gfl', hook, iters=2))
        return values(runner, 'sd_unlabeled_skipped')

    # it is the first by name, and is tried before the first step
    with pytest.raises(ValueError, match=r'unlabeled: the training pipeline does not'):
        runs.train(runs.config('gfl', dict(EMA, unlabeled=unlabeled), iters=1))
    Path(folder, '0.jpg').rename(Path(folder, 'z.jpg'))
    with pytest.raises(ValueError, match=r'unlabeled.data: .*z.jpg.* cannot be loaded'):
        runs.train(runs.config('gfl', dict(EMA, unlabeled=unlabeled), iters=1))
    for own, message in (
        # one that loads nothing
        (dict(pipeline=[]), r'^unlabeled\.pipeline: it does not end in an image and'),
        (dict(pipeline=dict(type='Load')), r'^unlabeled\.pipeline: expected a list of'),
        (
            dict(data=dict(type='CocoDataset', data_prefix=dict(img='gone/'))),
            r"^unlabeled\.data: there is no file 'gone/a\.jpg': FileNotFoundError",
        ),
    ):
        cfg = runs.config('gfl', dict(EMA, unlabeled={**unlabeled, **own}), iters=1)
        if 'data' in own:
            image = dict(id=0, file_name='a.jpg', height=64, width=64)
            coco = dict(images=[image], annotations=[], categories=[])
            Path(folder, 'a.json').write_text(json.dumps(coco))
            cfg.default_hooks.self_distill.unlabeled.data.ann_file = f'{folder}/a.json'
        with pytest.raises(ValueError, match=message):
            runs.train(cfg)
    # each batch of seven is one round
    assert skipping() == [1, 2]
    Path(folder, 'z.jpg').rename(Path(folder, '0.jpg'))
    assert skipping() == [1, 2]


def test_the_count_of_broken_images_goes_on_when_resumed(
    runs: Runs, folder: str
) -> None:
    Path(folder, 'z.jpg').write_bytes(b'no image')
    unlabeled = dict(data=folder, batch_size=7, num_workers=0, skip_broken=True)
    # the batch of an iteration that rests is not used, and not counted
    hook = dict(EMA, unlabeled=unlabeled, every=2)
    cfg = runs.config('gfl', hook, iters=5)
    cfg.default_hooks.checkpoint.interval = 4
    for resume, stop_at in ((False, 4), (True, None)):
        cfg.resume = resume
        runner = runs.train(cfg, stop_at=stop_at)
    assert values(runner, 'sd_unlabeled_skipped') == [1, 1, 2, 2, 3]


def test_the_batch_is_that_of_the_training_loader(runs: Runs, folder: str) -> None:
    cfg = runs.config('gfl', dict(EMA, unlabeled=dict(data=folder)), iters=1)
    # PyTorch then says that the loader has no size of a batch
    cfg.train_dataloader.batch_sampler = dict(type='mmdet.AspectRatioBatchSampler')
    unlabeled = runs.hook(runs.train(cfg)).distiller.unlabeled
    assert unlabeled.comparison.shapes['features'][0].startswith('2x')


@pytest.mark.parametrize('own', [False, True])
def test_ranks_share_one_order_of_images_whatever_their_seeds(
    own: bool, runs: Runs, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # where each has its own, MMEngine adds the rank
    cfg = runs.config('segformer', dict(EMA, unlabeled=dict(data=folder)), iters=1)
    cfg.randomness = dict(seed=4, diff_rank_seed=own)
    runner = runs.build(cfg)
    assert runner.seed == 4
    assert seed_of_all_ranks(runner) == 4
    monkeypatch.setattr('mmselfdistill.hooks.run.get_rank', lambda: 1)
    assert seed_of_all_ranks(runner) == (3 if own else 4)


def test_resumed_without_a_seed_of_ones_own(runs: Runs, folder: str) -> None:
    seeds = []
    cfg = runs.config('gfl', dict(EMA, unlabeled=dict(data=folder)), iters=4)
    cfg.randomness = dict(seed=None)
    cfg.default_hooks.checkpoint.interval = 2
    for resume, stop_at in ((False, 3), (True, None)):
        cfg.resume = resume
        runner = runs.train(cfg, stop_at=stop_at)
        batches = runs.hook(runner).distiller.unlabeled.batches
        seeds.append((batches.seed, batches.drawn))
        assert batches.seed == runner.seed
    (first, _), (second, drawn) = seeds
    assert (second, drawn) == (first, 4)


def work(*configs: str) -> None:
    """Train each config on one rank, and save student, teacher and images."""
    dist.init_process_group('gloo')
    for config in configs:
        runner = Runner.from_cfg(Config.fromfile(config))
        runner.train()
        (hook,) = (hook for hook in runner.hooks if hasattr(hook, 'distiller'))
        model: Any = runner.model
        found = dict(
            student=dict(model.module.named_parameters()),
            teacher=hook.distiller.teacher.state_dict(),
            used=hook.distiller.unlabeled.used,
        )
        torch.save(found, Path(config).with_suffix(f'.{dist.get_rank()}'))
    dist.destroy_process_group()


def test_two_processes(runs: Runs, folder: str, tmp_path: Path) -> None:
    paths = []
    for name in ('gfl', 'mask_rcnn', 'segformer'):
        terms = dict(pseudo_labels=SURE) if name == 'segformer' else None
        hook = dict(EMA, terms=terms, view=VIEW, unlabeled=dict(data=folder))
        cfg = runs.config(name, hook, iters=3)
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        )
        paths.append(tmp_path / f'{name}.py')
        cfg.dump(paths[-1])
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*command, '--nproc-per-node=2', __file__, *map(str, paths)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    for path in paths:
        zero, one = (
            torch.load(path.with_suffix(f'.{rank}'), weights_only=True)
            for rank in (0, 1)
        )
        assert runs.differences(zero, one) == []
        assert zero['used'] == 3


def test_the_folders_of_the_images_are_said(runs: Runs, folder: str) -> None:
    image = next(Path(folder).glob('*.jpg'))
    for name, count in (('many', 3), ('b', 2), ('c', 2), ('d', 2), ('e', 1), ('f', 1)):
        (Path(folder) / name).mkdir()
        for number in range(count):
            shutil.copy(image, f'{folder}/{name}/{number}.jpg')
    inside = len([*Path(folder).glob('*.jpg')])
    images = len([*Path(folder).rglob('*.jpg')])
    hook = dict(EMA, unlabeled=dict(data=folder, batch_size=1, num_workers=0))
    runner = runs.train(runs.config('gfl', hook, iters=1))
    named = {f'{folder}/many': 3, **{f'{folder}/{n}': 2 for n in 'bcd'}}
    named = dict(sorted({folder: inside, **named}.items(), key=lambda x: -x[1])[:4])
    listed = ', '.join(f'{name} ({count})' for name, count in named.items())
    rest = images - sum(named.values())
    assert (
        f'Self-distillation on {images} images without labels, 1 an iteration and '
        f'process. They are in {listed} and 3 more ({rest}).'
    ) in runs.log(runner)


@pytest.mark.parametrize('name, images', [('gfl', 'val'), ('deeplabv3plus', 'images')])
def test_images_that_the_run_is_validated_by_are_said(
    name: str, images: str, runs: Runs, folder: str, scenes: Path, tmp_path: Path
) -> None:
    theirs = next(scenes.glob(f'{images}*'))
    link = tmp_path / 'linked'
    link.symlink_to(theirs)
    # a split may be made of links to its files
    linked = tmp_path / 'files'
    linked.mkdir()
    for number, file in enumerate(sorted(theirs.rglob('*.[jp][pn]g'))):
        (linked / f'{number}{file.suffix}').symlink_to(file)
    for data, count in ((theirs, 2), (folder, 0), (link, 2), (linked, 2)):
        hook = dict(EMA, unlabeled=dict(data=str(data), batch_size=2, num_workers=0))
        cfg = runs.config(name, hook, iters=1, val_interval=2)
        if name == 'gfl':
            cfg.val_evaluator.ann_file = f'{scenes}/annotations/instances_val2017.json'
        runner = runs.train(cfg)
        said = f'unlabeled.data: {count} of the 2 validation images are among these.'
        assert runs.log(runner).count(said) == (count > 0)
        assert runs.log(runner).count('validation images') == (count > 0)


if __name__ == '__main__':
    work(*sys.argv[1:])
