"""What a run has logged: its training, and its metrics."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from mmengine.utils import import_modules_from_strings

from mmselfdistill.commands.logs import (
    config_at,
    config_of,
    counts_epochs,
    is_training,
    of_last_run,
    place,
    training_logs,
    validations,
)
from mmselfdistill.core.keys import LOSS, TASK_WEIGHT
from mmselfdistill.hooks.validation import PREFIX
from mmselfdistill.names import name_of
from mmselfdistill.zoo import scope_of

# MMDetection logs average precision and recall, and scores of tracking, as 0 to 1; its
# panoptic quality, and what MMSegmentation and MMPreTrain log, are of 0 to 100
SHARE = re.compile(
    r'(^|[/_])(m?A[PR]|(base|novel|all)_ap|recall@|R\d+$)'
    r'|(^|[/_])(mMR|JI|HOTA|AssA|DetA|MOTA|MOTP|IDF1|IDP|IDR)$'
    r'|_precision(@\d+)?$'
)
PERCENT = re.compile(
    r'(^|[/_])([am](Acc|IoU|Dice|Fscore|Precision|Recall)|[PSR]Q(_(th|st))?|ece)$'
    r'|(^|/)(accuracy|single-label|multi-label|retrieval)/'
)
# errors of depth, and what a tracker did wrong: the less, the better
ERRORS = r'nll|abs_rel|sq_rel|rmse|log10|rmse_log|silog|IDSW|Frag|ML|(ID)?F[PN]'
LESS = re.compile(
    rf'(^|[/_])(mMR|ece|{ERRORS})$|(?<![A-Za-z])loss(?![A-Za-z])(?!.*_precision$)'
)
OF_MMPRETRAIN = re.compile(r'(multi-label|retrieval)/')


def percent(metric: str, value: float) -> float:
    """Return a score in percent, where its metric is one that is logged as a share.

    Any other stays as it is logged: in percent already, a count, or one of your own.
    COCO's metrics are -1, so nan here, where there is nothing to find.
    """
    if not _is_share(metric):
        return value
    return math.nan if value == -1 else 100 * value


def _is_share(metric: str) -> bool:
    return bool(SHARE.search(metric)) and not OF_MMPRETRAIN.search(metric)


@dataclass
class Curve:
    """One metric of a run, by epoch or by iteration (`unit`).

    Args:
        unit (str): 'epochs' or 'iterations'.
        length (int): At which the metric is known last.
        train (list[dict]): What was logged while training, by iteration.
        scores (dict[int, float]): The metric.
        less (bool): Whether less is better. Defaults to False.
        percent (bool): Whether it is known to be in percent. Defaults to True.
    """

    unit: str
    length: int
    train: list[dict[str, float]]
    scores: dict[int, float]
    less: bool = False
    percent: bool = True

    def text(self, at: int) -> str:
        """Return the score at an epoch or iteration, for people."""
        return f'{self.scores[at]:.1f}' if self.percent else f'{self.scores[at]:g}'

    def score_at(self, position: int) -> float:
        """Return the score at an epoch or iteration."""
        return self.scores[position]

    def best(self) -> tuple[int, float]:
        """Return the position of the best score, the first of several, and it."""
        known = [at for at in sorted(self.scores) if not math.isnan(self.scores[at])]
        order = known or sorted(self.scores)
        at = (min if self.less else max)(order, key=lambda each: self.scores[each])
        return at, self.scores[at]

    def seconds(self, begin: int, end: int) -> float:
        """Return the median of seconds per iteration after `begin` up to `end`."""
        return statistics.median(
            entry['time'] for entry in self.train if begin < entry['at'] <= end
        )

    def iterations_at(self, position: float) -> float:
        """Return how many iterations are done at an epoch or iteration."""
        if self.unit != 'epochs':
            return position
        # the largest share of an epoch that was logged: the last one may not have ended
        return position * max(entry['step'] / entry['at'] for entry in self.train)

    def hours_at(self, positions: Any) -> Any:
        """Return the hours of training at epochs or iterations, validation left out."""
        steps = np.array([0.0, *(entry['step'] for entry in self.train)])
        seconds = np.array([entry['time'] for entry in self.train])
        hours = np.cumsum(np.append(0.0, seconds * np.diff(steps))) / 3600
        wanted = [self.iterations_at(position) for position in positions]
        return np.interp(wanted, steps, hours)


@dataclass
class Run:
    """What is logged in a work dir."""

    name: str
    by_epoch: bool
    train: list[dict[str, float]]
    metrics: dict[int, dict[str, float]]  # by epoch or iteration

    @classmethod
    def read(cls, folder: Path, name: str = '') -> Run:
        """Read the logs of a work dir; those of a resumed run replace what they repeat.

        Of several runs that were not resumed, the last one counts.

        Args:
            folder (Path): The work dir.
            name (str): What the run is called. Defaults to '': the folder's name.

        Raises:
            ValueError: If nothing of a training run is logged there.
        """
        logs = of_last_run(training_logs(folder))
        if not logs:
            raise ValueError(
                f'{folder}: no run has logged its training there (expected '
                'TIMESTAMP/vis_data/scalars.json in it)'
            )
        cfgs = {path: config_at(path.with_name('config.py')) for path in logs}
        entries = [entry for log in logs.values() for entry in log]
        by_epoch = counts_epochs(entries, [*cfgs.values()][-1])
        place(logs.values(), by_epoch)
        train: dict[int, dict[str, float]] = {}
        metrics: dict[int, dict[str, float]] = {}
        for path, log in logs.items():
            steps = [entry for entry in log if is_training(entry)]
            for entry in steps:
                entry.setdefault('time', math.nan)
            first = steps[0]
            train = {k: v for k, v in train.items() if k < first['step']}
            metrics = {k: v for k, v in metrics.items() if k < first['at']}
            train.update({entry['step']: entry for entry in steps})
            for at, entry in validations(log, cfgs[path], max(metrics, default=0)):
                metrics.setdefault(at, {}).update(entry)
        name = name or folder.resolve().name
        return cls(name, by_epoch, [train[k] for k in sorted(train)], metrics)

    def names(self) -> list[str]:
        """Return the names of all metrics."""
        found = {name for values in self.metrics.values() for name in values}
        return sorted(found - {'step', 'time', 'data_time', 'memory', 'iter', 'epoch'})

    def curve(self, metric: str) -> Curve:
        """Return one metric.

        Raises:
            ValueError: If the run has not logged it.
        """
        scores = {
            at: percent(metric, values[metric])
            for at, values in sorted(self.metrics.items())
            if metric in values
        }
        if not scores:
            raise ValueError(
                f'{self.name}: has logged no {metric!r}, but '
                f'{", ".join(self.names()) or "no metric at all"}'
            )
        unit = 'epochs' if self.by_epoch else 'iterations'
        less = LESS.search(metric) is not None
        in_percent = _is_share(metric) or PERCENT.search(metric) is not None
        return Curve(unit, max(scores), self.train, scores, less, in_percent)

    def sides(self) -> list[Run]:
        """Return the student's run and the teacher's, of which each was validated.

        The teacher's has the stock names of its metrics: `validate='both'` logs them as
        ``teacher/coco/bbox_mAP``. A model of a student and a teacher, such as
        SoftTeacher, logs ``student/coco/bbox_mAP`` too, and is one run.
        """
        if any(name.startswith('student/') for name in self.names()):
            return [self]
        student: dict[int, dict[str, float]] = {}
        teacher: dict[int, dict[str, float]] = {}
        for at, values in self.metrics.items():
            for key, value in values.items():
                if key.startswith(PREFIX):
                    teacher.setdefault(at, {})[key[len(PREFIX) :]] = value
                else:
                    student.setdefault(at, {})[key] = value
        found = [replace(self, metrics=student)]
        if teacher:
            name = f'{self.name} (teacher)'
            found.append(replace(self, name=name, metrics=teacher))
        return [run for run in found if run.names()] or [self]

    def classes(self) -> dict[str, float]:
        """Return the last AP of each class, where COCO's metric is ``classwise``."""
        last = self.metrics[max(self.metrics)] if self.metrics else {}
        end = '_precision'
        return {
            key[: -len(end)].partition('/')[2]: percent(key, value)
            for key, value in last.items()
            # MMDetection logs a class without objects as nan, and a mean in this form
            if key.endswith(end) and not math.isnan(value) and 'mean_' not in key
        }


def class_names(folder: Path) -> list[str]:
    """Return the classes that a run was validated on, in order; [] if unknown.

    MMEngine writes a run's config next to its log. There they are those that the config
    gives its data set, or a file of them, or the data set's own.
    """
    cfg = config_of(folder)
    dataset = _validated(cfg)
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None and 'type' in dataset:
        kind = dataset['type']
        # new configs name the class by its path
        scope = scope_of(cfg)
        path = kind if '.' in kind or not scope else f'{scope}.{kind}'
        found = DATASETS.get(path) or _of_ones_own(path, cfg)
        classes = getattr(found, 'METAINFO', {}).get('classes')
    if isinstance(classes, str):
        is_file = Path(classes).is_file()
        classes = list_from_file(classes) if is_file else [classes]
    return list(classes or [])


def sorts_categories(folder: Path) -> bool:
    """Say whether a run's data set numbers classes by the ids of their categories.

    Others, as COCO's, go by their order in the file.
    """
    kind = _validated(config_of(folder)).get('type', '')
    return name_of(kind) == 'Objects365V1Dataset'


def _validated(cfg: Config) -> Any:
    """Return the config of the data set of a validation: of several, of the first."""
    found = (cfg.get('val_dataloader') or {}).get('dataset') or {}
    while 'dataset' in found or found.get('datasets'):
        found = found['dataset'] if 'dataset' in found else found['datasets'][0]
    return found


def _of_ones_own(path: str, cfg: Config) -> Any:
    """Return a data set that the run imports, or None."""
    try:
        import_modules_from_strings(**(cfg.get('custom_imports') or {'imports': []}))
    except Exception:  # it may need what is not on this machine
        return None
    return DATASETS.get(path)


def seed_of(folder: Path) -> int | None:
    """Return the seed that a run's config gives; None if each start draws another."""
    return (config_of(folder).get('randomness') or {}).get('seed')


def task_loss(entry: dict[str, float]) -> float:
    """Return the loss without the distillation terms, and without its weight.

    Where `task_weight` moves, the log has its last value, and the loss's mean over a
    window: it is about the loss then. At a weight of 0 it is unknown, and nan.
    """
    terms = (v for key, v in entry.items() if key.startswith(LOSS))
    weight = entry.get(TASK_WEIGHT, 1.0)
    return (entry['loss'] - sum(terms)) / weight if weight > 0 else math.nan
