"""Report what the accuracy benchmark measured: a table and a picture.

    python -m tools.benchmarks.accuracy_report work_dirs/accuracy.json --out work_dirs

What counts is the difference to the best control, seed by seed: that over which an arm
gains the least. Averaged weights are controls too, and so is the best of all
validations of a control, where a regime has several.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator

import matplotlib
import matplotlib.pyplot as plt
from scipy.stats import t

from mmselfdistill.hooks.validation import PREFIX

from .arms import MODELS, REGIMES, TITLES, is_control, settings_hash
from .corruption import CORRUPTIONS

matplotlib.use('Agg')
AVERAGE, BEST = ' (average)', ' (best)'
NAMES = dict(bbox_mAP='box AP', segm_mAP='mask AP', mIoU='mIoU')


def title_of(control: str) -> str:
    """Return a control's name in a picture."""
    return TITLES[run_of(control)] + (' at its best' if control.endswith(BEST) else '')


def run_of(arm: str) -> str:
    """Return the arm whose runs these are, such as 'plain' for 'plain (best)'."""
    return arm.replace(AVERAGE, '').replace(BEST, '')


@dataclass(frozen=True)
class Compared:
    """The paired differences of an arm to a control, in points.

    Args:
        differences (list[float]): One a seed.
    """

    differences: list[float]

    @property
    def mean(self) -> float:
        """Their mean; infinite if no seed has both."""
        return statistics.fmean(self.differences) if self.differences else math.inf

    @property
    def half(self) -> float:
        """Half the width of the mean's 95 % interval, by Student's t."""
        n = len(self.differences)
        if n < 2:
            return math.inf
        spread = statistics.stdev(self.differences) / math.sqrt(n)
        return float(t.ppf(0.975, n - 1)) * spread

    def __str__(self) -> str:
        """The mean and half the interval, such as '+2.1 ± 0.8'."""
        return f'{self.mean:+.1f} ± {self.half:.1f}' if self.half < 1e3 else '-'


class Cell:
    """All runs of a model in a regime.

    Args:
        model (str): Its name in :data:`MODELS`.
        regime (str): Its name in :data:`REGIMES`.
        results (dict): Runs by 'model/regime/arm/seed'.
    """

    def __init__(self, model: str, regime: str, results: dict[str, Any]) -> None:
        self.model, self.regime = model, regime
        self.metric = MODELS[model].metric
        self.factor = 100.0 if self.metric.startswith('coco/') else 1.0
        self.runs: dict[str, dict[int, Any]] = {}
        self.gone: list[str] = []
        for key, run in results.items():
            name, kind, arm, seed = key.split('/')
            if (name, kind) == (model, regime) and arm not in TITLES:
                self.gone.append(f'{arm} {seed}')
            elif (name, kind) == (model, regime):
                self.runs.setdefault(arm, {})[int(seed)] = run

    def scores(self, arm: str) -> dict[int, float]:
        """Return an arm's score by seed.

        For 'arm (average)' it is that of its averaged weights, for 'arm (best)' that of
        its best validation, of student or average.
        """
        runs = self.runs.get(run_of(arm), {})
        if arm.endswith(BEST):
            return {s: self.factor * run['best'] for s, run in runs.items()}
        key = PREFIX + self.metric if arm.endswith(AVERAGE) else self.metric
        return {s: self.factor * run['metrics'][key] for s, run in runs.items()}

    def arms(self) -> tuple[list[str], list[str]]:
        """Return the controls and the arms with a teacher that were run."""
        known = [arm for arm in TITLES if arm in self.runs]
        controls = [arm for arm in known if is_control(self.model, arm)]
        several = REGIMES[self.regime].validations > 1
        kinds = ['', AVERAGE, BEST] if several else ['', AVERAGE]
        return (
            [arm + kind for arm in controls for kind in kinds],
            [arm for arm in self.runs if arm not in controls],
        )

    def outdated(self) -> str:
        """Say which runs are of other settings than the benchmark has now."""
        found = [*self.gone]
        for arm, runs in self.runs.items():
            today = settings_hash(self.model, self.regime, arm)
            # older results do not say it
            others = [k for k, v in runs.items() if v.get('settings', today) != today]
            if others:
                found.append(f'{arm} {", ".join(map(str, sorted(others)))}')
        seeds = '; '.join(found)
        return f'Of other settings than now, by seed: {seeds}' if seeds else ''

    def best_control(self, arm: str) -> str:
        """Return the control over which an arm gains the least, seed by seed.

        Of the controls that have the most seeds in common with it; '' without any.
        """
        found = {other: self.compared(arm, other) for other in self.arms()[0]}
        if not found:
            return ''
        most = max(len(each.differences) for each in found.values())
        return min(
            (other for other, each in found.items() if len(each.differences) == most),
            key=lambda other: found[other].mean,
        )

    def compared(self, arm: str, control: str) -> Compared:
        """Return the paired differences on the seeds that both have."""
        ours, theirs = self.scores(arm), self.scores(control)
        return Compared([ours[s] - theirs[s] for s in sorted(ours.keys() & theirs)])

    def rows_drawn(self) -> list[tuple[str, Compared]]:
        """Return the comparisons on three seeds or more, to each control by itself."""
        controls, arms = self.arms()
        rows = [
            (f'{TITLES[arm]}, over {title_of(control)}', self.compared(arm, control))
            for arm in arms
            for control in controls
            if not control.endswith(AVERAGE)
        ]
        return [(name, found) for name, found in rows if len(found.differences) > 2]

    def mean_of(self, arm: str, what: str) -> float:
        """Return the mean of what else was measured, NaN where it was not."""
        prefix = PREFIX if arm.endswith(AVERAGE) else ''
        runs = self.runs[run_of(arm)].values()
        found = [
            value
            for run in runs
            for key, value in run['metrics'].items()
            if key.startswith(prefix)
            and key[len(prefix) :] in (f'boxes/{what}', f'pixels/{what}')
        ]
        return statistics.fmean(found) if found else math.nan

    def _gain(self, arm: str) -> str:
        control = self.best_control(arm)
        if not control:
            return ''
        found = self.compared(arm, control)
        return f'{found} ({control}, {len(found.differences)} seeds)'

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of the table, controls first."""
        controls, arms = self.arms()
        seeds = {tuple(sorted(runs)) for runs in self.runs.values()}
        for arm in [*controls, *arms]:
            by_seed = self.scores(arm)
            scores = list(by_seed.values())
            # a mean of other seeds is not to be compared
            which = f': {" ".join(map(str, sorted(by_seed)))}' if len(seeds) > 1 else ''
            gain = '' if arm in controls else self._gain(arm)
            runs = self.runs[run_of(arm)].values()
            seconds = [run['seconds'] for run in runs]
            yield [
                arm,
                f'{len(scores)}{which}',
                f'{statistics.fmean(scores):.1f}',
                f'{statistics.stdev(scores):.1f}' if len(scores) > 1 else '-',
                gain,
                '-' if arm.endswith(BEST) else f'{self.mean_of(arm, "ece"):.1f}',
                f'{statistics.median(seconds):.0f}',
            ]


def table(cell: Cell) -> str:
    """Return a cell's table in Markdown."""
    name = NAMES[cell.metric.rpartition('/')[2]]
    head = ['arm', 'seeds', name, 'sd', 'to the best control', 'ECE, %', 's a run']
    return markdown(head, cell.rows())


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in (head, *rows)]
    lines.insert(1, '|---' * len(head) + '|')
    return '\n'.join(lines)


def corrupted_table(cell: Cell) -> str:
    """Return the mean scores on perturbed scenes in Markdown, '' if there are none."""
    head = ['arm', 'seeds', 'clean', *CORRUPTIONS, 'mean of the four']
    rows = []
    for arm, by_seed in cell.runs.items():
        runs = [run for run in by_seed.values() if 'corrupted' in run]
        if runs:
            scores = [
                statistics.fmean(run['corrupted'][kind] for run in runs)
                for kind in CORRUPTIONS
            ]
            clean = statistics.fmean(run['metrics'][cell.metric] for run in runs)
            figures = [clean, *scores, statistics.fmean(scores)]
            shown = [f'{cell.factor * each:.1f}' for each in figures]
            rows.append([arm, str(len(runs)), *shown])
    return markdown(head, rows) if rows else ''


def cells_of(results: dict[str, Any]) -> list[Cell]:
    """Return the models and regimes that were run, in the order of the benchmark."""
    cells = [Cell(m, r, results) for m in MODELS for r in REGIMES]
    return [cell for cell in cells if cell.runs]


def draw(cells: list[Cell], path: Path) -> None:
    """Draw the paired differences of the arms with a teacher, with their intervals."""
    rows: list[tuple[str, Compared | None]] = []
    for cell in cells:
        if drawn := cell.rows_drawn():
            title = f'{MODELS[cell.model].title}, {REGIMES[cell.regime].title}'
            rows += [(title, None), *drawn]
    figure, axes = plt.subplots(figsize=(10, 1 + 0.28 * len(rows)))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis='y', length=0)
    for height, (_, found) in enumerate(rows):
        if found is None:
            axes.get_yticklabels()[height].set_fontweight('bold')
            continue
        color = 'tab:green' if found.mean - found.half > 0 else 'tab:gray'
        color = 'tab:red' if found.mean + found.half < 0 else color
        axes.errorbar(found.mean, height, xerr=found.half, fmt='o', c=color, capsize=3)
        axes.plot(found.differences, [height] * len(found.differences), '|', c=color)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color='black', linewidth=0.8)
    axes.set_xlabel('points gained: each seed, mean and 95 % interval')
    axes.grid(axis='x', alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('results', type=Path, help='JSON of tools.benchmarks.accuracy')
    parser.add_argument('--out', type=Path, help='folder for benchmark.png')
    args = parser.parse_args()
    cells = cells_of(json.loads(args.results.read_text()))
    for cell in cells:
        print(f'\n### {cell.model}, {cell.regime}\n\n{table(cell)}')
        print(f'\n{corrupted_table(cell)}\n{cell.outdated()}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(cells, args.out / 'benchmark.png')


if __name__ == '__main__':
    main()
