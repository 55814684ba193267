"""What the accuracy benchmark trains: models, regimes, and the arms compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmselfdistill.commands import logs, runs
from mmselfdistill.hooks.unlabeled import DEFAULT_VIEW
from tools.dataset_converters import digits
from tools.demo_arms import with_data

from . import calibration, corruption, scenes
from .results import versions

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
BOXES = 'coco/bbox_mAP'
SCHEDULE = CONFIGS / '_base_' / 'schedules' / 'digits_benchmark.py'


@dataclass(frozen=True)
class Model:
    """A model, and what it is measured by.

    Args:
        title (str): Its name in a picture.
        config (str): File in configs/digits; the benchmark's schedule replaces its own.
        metric (str): The benchmark's figure, as the evaluator names it.
        iterations (int): Length of a run; a regime may stretch it.
    """

    title: str
    config: str
    metric: str
    iterations: int

    @property
    def task(self) -> str:
        """Whether it detects or segments: 'det' or 'seg'."""
        return 'seg' if self.metric == 'mIoU' else 'det'


@dataclass(frozen=True)
class Regime:
    """What there is to learn from, and for how long.

    Args:
        title (str): Its name in a picture.
        train (int): Scenes with labels.
        unlabeled (int): Scenes without.
        wrong (float): Share of the objects with a wrong class.
        missing (float): Share of the objects without a label.
        length (float): Length of a run, as a share of the model's own.
        validations (int): Validations of a run, evenly spaced, the last at its end.
            With more than one, what a control was at its best is a control too.
        controls (tuple[str, ...]): The arms without a teacher, to be the best of.
        arms (tuple[str, ...]): The arms with one.
    """

    title: str
    train: int
    controls: tuple[str, ...]
    arms: tuple[str, ...]
    unlabeled: int = 0
    wrong: float = 0.0
    missing: float = 0.0
    length: float = 1.0
    validations: int = 1

    def scenes(self, folder: Path, seed: int) -> Path:
        """Return the folder of a seed's scenes, which are drawn if need be."""
        values = (self.train, self.unlabeled, self.wrong, self.missing)
        root = folder / '-'.join([*(f'{value:g}' for value in values), str(seed)])
        scenes.write_scenes(
            root, seed, self.train, self.unlabeled, self.wrong, self.missing
        )
        return root


MODELS = dict(
    retinanet=Model('RetinaNet', 'retinanet_r18_fpn_50e_digits', BOXES, 1200),
    faster_rcnn=Model('Faster R-CNN', 'faster-rcnn_r18_fpn_50e_digits', BOXES, 1200),
    mask_rcnn=Model(
        'Mask R-CNN', 'mask-rcnn_r18_fpn_50e_digits', 'coco/segm_mAP', 1200
    ),
    deeplabv3plus=Model(
        'DeepLabV3+', 'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64', 'mIoU', 1200
    ),
    unet=Model('UNet', 'unet-s4-d8_fcn_1xb8-1500_digits-64x64', 'mIoU', 4800),
    gfl=Model('GFL', 'gfl_r18_fpn_50e_digits', BOXES, 1200),
)
CLEAN_UNLABELED = Regime(
    'all labels, and images without labels',
    240,
    ('same_time',),
    ('default', 'unlabeled'),
    unlabeled=1000,
    validations=6,
)
WRONG_UNLABELED = replace(
    CLEAN_UNLABELED, title='wrong classes, and images without labels', wrong=0.4
)
REGIMES = dict(
    clean=Regime('all labels', 240, ('plain', 'longer'), ('ema', 'strong'), length=2.5),
    wrong=Regime('wrong classes', 240, ('plain',), ('strong',), wrong=0.4),
    missing=Regime('missing labels', 240, ('plain',), ('strong',), missing=0.4),
    few=Regime(
        'few labels, and images without labels',
        100,
        ('plain', 'same_time', 'longest', 'view'),
        ('unlabeled', 'default'),
        unlabeled=1000,
    ),
    # the plain run has converged
    few_long=Regime(
        'few labels, twice the schedule',
        100,
        ('same_time',),
        ('unlabeled', 'default'),
        unlabeled=1000,
        length=2.0,
    ),
    clean_unlabeled=replace(CLEAN_UNLABELED, length=2.5),
    wrong_unlabeled=replace(WRONG_UNLABELED, length=2.0),
    missing_unlabeled=replace(
        CLEAN_UNLABELED,
        title='missing labels, and images without labels',
        missing=0.4,
        length=2.0,
    ),
    # the schedule of the model itself, for one that is slow
    clean_unlabeled_1x=CLEAN_UNLABELED,
    wrong_unlabeled_1x=WRONG_UNLABELED,
    # so many labels that a model learns before it memorises
    many_wrong=replace(
        WRONG_UNLABELED,
        title='wrong classes of many, and images without labels',
        train=1000,
        length=4.0,
        arms=('faded', 'frozen', 'default'),
    ),
    short=Regime(
        'a short schedule', 1000, ('plain',), ('ema', 'former', 'strong'), length=0.4
    ),
)
# the arms' names in a picture, under those of model and regime
TITLES = dict(
    plain='plain',
    longer='plain for 1.5 times as long',
    same_time='plain for 1.85 times as long',
    longest='plain for 2.5 times as long',
    view='plain with views',
    ema='the hook alone',
    former='the former default',
    strong='large weights',
    unlabeled='tuned settings',
    faded='labels that fade',
    frozen='a teacher that is frozen at half',
    soft='soft targets next to pseudo labels',
    default='one line, no other setting',
)


def stretched(cfg: Config, length: float) -> None:
    """Make a run longer or shorter, and its schedule with it, in place."""
    iterations = round(cfg.train_cfg.max_iters * length)
    cfg.train_cfg.max_iters = iterations
    cfg.param_scheduler[-1].update(T_max=iterations, end=iterations)


def scheduled(model: Model) -> Config:
    """Return a model's config of the digits with the benchmark's schedule."""
    cfg = Config.fromfile(CONFIGS / 'digits' / f'{model.config}.py')
    schedule = Config.fromfile(SCHEDULE)
    schedule.pop('optim_wrapper')
    for key, value in schedule.items():
        if key.endswith('_dataloader'):
            cfg[key].update(value)
        else:
            cfg[key] = value
    # one kernel: on one thread a small model is busy with its optimizer otherwise
    cfg.optim_wrapper.optimizer.fused = True
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].dataset.pop('indices', None)
    return cfg


def compose(
    model: Model, regime: Regime, root: Path, hook: dict[str, Any], seed: int
) -> Config:
    """Return the whole config of one run.

    Args:
        model (Model): What is trained.
        regime (Regime): On what.
        root (Path): The scenes.
        hook (dict): Settings of the hook; ``length`` stretches the run besides.
        seed (int): Of weights, order and views.
    """
    cfg, hook = scheduled(model), dict(hook)
    length = hook.pop('length', 1.0)
    if 'unlabeled' in hook:
        hook['unlabeled'] = dict(hook['unlabeled'], num_workers=0)
    cfg.default_hooks.self_distill = hook
    with_data(cfg, root, seed)
    calibrated = dict(det='BoxCalibration', seg='PixelCalibration')[model.task]
    evaluators = [cfg.val_evaluator, dict(type=calibrated)]
    cfg.val_evaluator = cfg.test_evaluator = evaluators
    stretched(cfg, model.iterations / cfg.train_cfg.max_iters * regime.length)
    stretched(cfg, length)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters // regime.validations
    return cfg


def digest(cfg: Config) -> str:
    """Return a hash of all that a result depends on, but the folders."""
    folder = Path(cfg.train_dataloader.dataset.data_root).parent
    found = hashlib.sha256(cfg.pretty_text.replace(f'{folder}/', '').encode())
    # runs on another device count all the same
    software = {key: each for key, each in versions().items() if key != 'device'}
    found.update(json.dumps(software).encode())
    for source in (calibration, corruption, scenes, digits, runs, logs):
        found.update(Path(str(source.__file__)).read_bytes())
    found.update(Path(__file__).with_name('accuracy.py').read_bytes())
    return found.hexdigest()[:16]


def settings_hash(model: str, regime: str, arm: str) -> str:
    """Return a hash of what is trained on what, the same for all seeds."""
    known = asdict(REGIMES[regime])
    for name in ('title', 'controls', 'arms'):
        del known[name]
    each = MODELS[model], settings_of(MODELS[model], arm)
    text = json.dumps([known, asdict(each[0]), each[1]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_control(model: str, arm: str) -> bool:
    """Say whether an arm has no teacher."""
    return settings_of(MODELS[model], arm).get('loss_weight') == 0


# the lines of docs/when_it_helps.md
STRONG = dict(horizon=0.01, schedule=dict(begin=0.5, warmup=0.2))
FORMER = dict(begin=0.15, warmup=0.15)
EARLY = dict(begin=0.3, warmup=0.2)  # few labels are soon learnt
# wrong labels: a teacher from half of the run on, and labels that fade then
HALF = dict(begin=0.5, warmup=0.1)
FADING = dict(type='linear', start=1.0, stop=0.1, begin=0.5, end=0.6)
TERMS: dict[str, dict[str, Any]] = dict(
    det=dict(features=None, logits=dict(weight=4.0), boxes=dict(weight=1.0)),
    seg=dict(features=None),
)
SOFT = dict(logits=dict(weight=2.0, on='both'))
# where there are images without labels
UNLABELED: dict[str, dict[str, Any]] = dict(
    det=TERMS['det'],
    seg=dict(features=None, logits=None),
)


def settings_of(model: Model, arm: str) -> dict[str, Any]:
    """Return the settings of an arm's hook; ``length`` is the run's, not the hook's.

    An arm without a teacher averages the student all the same, at a weight of 0: it is
    bitwise the stock run, and its average is measured besides.
    """
    hook = dict(type='mmselfdistill.EMATeacherHook', validate='both')
    plain: dict[str, Any] = dict(hook, horizon=STRONG['horizon'], loss_weight=0.0)
    strong: dict[str, Any] = dict(hook, terms=TERMS[model.task], **STRONG)
    tuned: dict[str, Any] = dict(strong, terms=UNLABELED[model.task], unlabeled=dict())
    arms: dict[str, dict[str, Any]] = dict(
        plain=plain,
        longer=dict(plain, length=1.5),
        # as long in time as that on images without labels
        same_time=dict(plain, length=1.85),
        longest=dict(plain, length=2.5),
        view=dict(plain, view=DEFAULT_VIEW),
        ema=hook,
        # the default before this benchmark
        former=dict(hook, momentum=0.999, schedule=FORMER),
        strong=strong,
        unlabeled=dict(tuned, schedule=EARLY, teacher_norm='running'),
        # labels may be wrong: they count less once there is a teacher
        faded=dict(tuned, schedule=HALF, task_weight=FADING),
        # and the teacher follows no further; as long in time as `same_time`
        frozen=dict(
            tuned,
            schedule=HALF,
            freeze=0.5,
            task_weight=dict(FADING, stop=0.3),
            length=1.1,
        ),
        # a segmentor's calibrated scores: soft targets next to the pseudo labels
        soft=dict(hook, unlabeled=dict(), terms=SOFT),
        # images without labels, and no setting besides
        default=dict(hook, unlabeled=dict()),
    )
    return arms[arm]
