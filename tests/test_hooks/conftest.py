"""Short runs of real models on a few scenes of digits."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.utils import digit_version, get_installed_path
from torch import Tensor

import mmselfdistill
from mmselfdistill.compat import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = dict(
    retinanet='retinanet_r18_fpn_50e_digits',
    gfl='gfl_r18_fpn_50e_digits',
    faster_rcnn='faster-rcnn_r18_fpn_50e_digits',
    mask_rcnn='mask-rcnn_r18_fpn_50e_digits',
    deeplabv3plus='deeplabv3plus_r18-d8_1xb8-1500_digits-64x64',
    segformer='segformer_mit-b0_1xb8-1500_digits-64x64',
)
STEPS_AN_EPOCH = 3
BATCH = 2
OURS = (
    mmselfdistill.SelfDistillHook,
    mmselfdistill.GenerationHook,
    mmselfdistill.EMATeacherHook,
)


@lru_cache(maxsize=None)
def stock(name: str) -> Config:
    """Return the keys of a digits config that a Runner reads."""
    if name == 'cascade_mask_rcnn':
        cfg = stock('mask_rcnn')
        return Config({**cfg, 'model': cascade_mask_rcnn(cfg.model)})
    cfg = Config.fromfile(ROOT / f'configs/digits/{CONFIGS[name]}.py')
    keys = inspect.signature(Runner).parameters
    return Config({key: value for key, value in cfg.items() if key in keys})


def cascade_mask_rcnn(small: Any) -> Any:
    """Return MMDetection's Cascade Mask R-CNN with the sizes of a small Mask R-CNN."""
    path = get_installed_path('mmdet')
    name = '.mim/configs/_base_/models/cascade-mask-rcnn_r50_fpn.py'
    model = Config.fromfile(f'{path}/{name}').model
    model.backbone, model.neck = small.backbone, small.neck
    model.rpn_head.update(in_channels=32, feat_channels=32)
    model.rpn_head.anchor_generator = small.rpn_head.anchor_generator
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        model.roi_head[key] = small.roi_head[key]
    for head in model.roi_head.bbox_head:
        head.update(in_channels=32, fc_out_channels=64, num_classes=10)
    model.roi_head.mask_head.update(
        in_channels=32, conv_out_channels=32, num_convs=1, num_classes=10
    )
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.update(nms_pre=256, max_per_img=64)
    for stage in model.train_cfg.rcnn:
        stage.sampler.num = 32
    return model


def schedulers(length: int, by_epoch: bool) -> list[dict[str, Any]]:
    """Return a warm-up of two iterations, and one cosine over the run."""
    warm_up = dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=2)
    cosine = dict(
        type='CosineAnnealingLR',
        T_max=length,
        eta_min_ratio=0.01,
        by_epoch=by_epoch,
        convert_to_iter_based=by_epoch,
        begin=0,
        end=length,
    )
    return [warm_up, cosine]


class Runs:
    """Makes the runs of a test, each with a name and a log of its own.

    Args:
        data (Path): The digits, as the converter wrote them.
        work_dirs (Path): Where the runs write.
    """

    models = (*CONFIGS, 'cascade_mask_rcnn')
    steps_an_epoch = STEPS_AN_EPOCH
    _number = itertools.count()

    def __init__(self, data: Path, work_dirs: Path) -> None:
        self.data = data
        self.work_dirs = work_dirs

    def config(
        self,
        name: str,
        hook: dict[str, Any] | None = None,
        *,
        iters: int = 0,
        epochs: int = 0,
        val_interval: int = 0,
    ) -> Config:
        """Return a run of a few iterations or epochs, without random transforms."""
        cfg = copy.deepcopy(stock(name))
        length = iters or epochs
        cfg.work_dir = str(self.work_dirs / f'{name}-{next(self._number)}')
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline = [
            step
            for step in dataset.pipeline
            if step.type not in ('RandomResize', 'RandomCrop', 'PhotoMetricDistortion')
        ]
        kind = 'InfiniteSampler' if iters else 'DefaultSampler'
        cfg.train_dataloader = dict(
            batch_size=BATCH,
            num_workers=0,
            sampler=dict(type=kind, shuffle=True),
            dataset=dataset,
        )
        cfg.train_cfg = dict(by_epoch=not iters, val_interval=val_interval or 1)
        cfg.train_cfg['max_iters' if iters else 'max_epochs'] = length
        cfg.param_scheduler = schedulers(length, by_epoch=not iters)
        for loader in ('train_dataloader', 'val_dataloader'):
            cfg[loader].dataset.data_root = str(self.data)
        for key in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'test_{key}'] = None
            if not val_interval:
                cfg[f'val_{key}'] = None
        cfg.visualizer = None
        cfg.default_hooks.pop('visualization')
        cfg.default_hooks.logger.interval = 1
        cfg.default_hooks.checkpoint = dict(
            type='CheckpointHook', by_epoch=not iters, interval=length
        )
        if hook is not None:
            cfg.default_hooks.self_distill = hook
        cfg.randomness = dict(seed=0)
        return cfg

    def build(self, cfg: Config) -> Runner:
        """Return a Runner whose name no other one has."""
        cfg = copy.deepcopy(cfg)
        cfg.experiment_name = f'hooks-{next(self._number)}'
        if cfg.default_hooks.get('self_distill', {}).get('student') == 'reinit':
            # MMEngine formats the config that it is given several times, which takes
            # longer than the run: give no more than is needed
            return Runner(**cfg, cfg=dict(model=cfg.model))
        return Runner(**cfg)

    def train(
        self,
        cfg: Config,
        before: Callable[[Runner], None] | None = None,
        after: Callable[[Runner], None] | None = None,
        stop_at: int | None = None,
    ) -> Runner:
        """Train; all other hooks come before ``before`` and ``after``.

        Args:
            cfg (Config): The run.
            before (Callable, optional): Is called before each iteration.
            after (Callable, optional): Is called after each iteration.
            stop_at (int, optional): The iteration before which the run is killed.
        """

        class KilledError(Exception):
            pass

        def before_train_iter(runner: Runner, **_: Any) -> None:
            if runner.iter == stop_at:
                raise KilledError
            if before is not None:
                before(runner)

        def after_train_iter(runner: Runner, **_: Any) -> None:
            if after is not None:
                after(runner)

        hook = Hook()
        hook.before_train_iter = before_train_iter
        hook.after_train_iter = after_train_iter
        runner = self.build(cfg)
        runner.register_hook(hook, 'LOWEST')
        with suppress(KilledError):
            runner.train()
        return runner

    @staticmethod
    def hook(runner: Runner) -> Any:
        """Return our hook."""
        (ours,) = (hook for hook in runner.hooks if isinstance(hook, OURS))
        return ours

    @staticmethod
    def log(runner: Runner) -> str:
        """Return what a run logged.

        Runs of one folder that begin within one second share a file.
        """
        (path,) = Path(runner.log_dir).glob('*.log')
        return path.read_text().rpartition('System environment')[2]

    @staticmethod
    def state(model: torch.nn.Module) -> dict[str, Tensor]:
        """Return a copy of parameters and buffers."""
        return {key: t.detach().clone() for key, t in model.state_dict().items()}

    @staticmethod
    def checkpoint(cfg: Config) -> dict[str, Any]:
        """Return what the last checkpoint of a run holds."""
        path = (Path(cfg.work_dir) / 'last_checkpoint').read_text()
        return dict(load_checkpoint(path))

    def differences(self, one: Any, other: Any, where: str = '') -> list[str]:
        """List where two nests of tensors and values are not bitwise the same."""
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            same = one.dtype == other.dtype and torch.equal(one, other)
            return [] if same else [where]
        if isinstance(one, dict) and isinstance(other, dict):
            if list(one) != list(other):
                return [f'{where}: {list(one)} {list(other)}']
            pairs = [(f'{where}.{key}', one[key], other[key]) for key in one]
        elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            if len(one) != len(other):
                return [f'{where}: {len(one)} {len(other)}']
            pairs = [(f'{where}[{i}]', *both) for i, both in enumerate(zip(one, other))]
        else:
            return [] if one == other else [f'{where}: {one} {other}']
        return [each for path, a, b in pairs for each in self.differences(a, b, path)]


@pytest.fixture
def stock_resumes_in_iterations() -> None:
    """Skip where MMEngine begins with the first batches again."""
    if digit_version(mmengine.__version__) < digit_version('0.10.3'):
        pytest.skip('this MMEngine does not skip the batches that were seen')


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.append(str(ROOT / 'tools' / 'dataset_converters'))
    import digits  # type: ignore[import-not-found]

    root: Path = tmp_path_factory.mktemp('scenes') / 'digits'
    digits.write_digits(root, train=STEPS_AN_EPOCH * BATCH, val=2, size=64, seed=0)
    return root


@pytest.fixture
def runs(scenes: Path, tmp_path: Path) -> Runs:
    return Runs(scenes, tmp_path)


@pytest.fixture
def models() -> Any:
    """Register models for one test."""
    # what they register by being imported stays
    import_module('mmdet.models')
    import_module('mmseg.models')
    registered = set(MODELS.module_dict)
    yield MODELS
    for name in set(MODELS.module_dict) - registered:
        MODELS.module_dict.pop(name)
