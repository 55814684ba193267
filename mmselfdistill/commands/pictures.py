"""The picture of several runs: curves, classes and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmselfdistill.commands.predictions import Calibration
from mmselfdistill.commands.runs import Curve, task_loss

GRID = '#d4d4d8'
INKS = ('#c2410c', '#1d4ed8', '#15803d', '#7e22ce', '#a16207', '#0e7490', '#525252')
MOST_CLASSES = 40
STYLE: Any = {
    'font.size': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#71717a',
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'legend.frameon': False,
    'savefig.dpi': 110,
}


def draw_comparison(
    path: Path,
    metric: str,
    curves: Mapping[str, Curve],
    differences: Mapping[str, float],
    calibrations: Mapping[str, Calibration],
) -> None:
    """Draw several runs.

    Args:
        path (Path): The picture to write.
        metric (str): Its name.
        curves (Mapping[str, Curve]): The metric of each run, by the run's name.
        differences (Mapping[str, float]): Of each class, between the first two runs;
            may be empty.
        calibrations (Mapping[str, Calibration]): Of the runs' predictions; may be
            empty.
    """
    more = [bool(differences), bool(calibrations)]
    with plt.rc_context(STYLE):
        rows = 2 if any(more) else 1
        figure, grid = plt.subplots(rows, 3, figsize=(13, 3.8 * rows), squeeze=False)
        draw_curves(grid[0], metric, curves)
        free = list(grid[1]) if rows == 2 else []
        if differences:
            draw_classes(free.pop(0), metric, differences)
        if calibrations:
            draw_calibration(free.pop(0), calibrations)
        for axes in free:
            axes.set_visible(False)
        save(figure, path)


def draw_curves(row: Any, metric: str, curves: Mapping[str, Curve]) -> None:
    """Draw a metric by length and by time, and the task's loss."""
    left, middle, right = row
    # of another unit than the rest: all by iteration
    units = {curve.unit for curve in curves.values()}
    unit = units.pop() if len(units) == 1 else 'iterations'
    for (name, curve), tone in zip(curves.items(), INKS * len(curves)):
        at = np.array(sorted(curve.scores))
        scores = [curve.scores[i] for i in at]
        x = at if unit == curve.unit else [curve.iterations_at(i) for i in at]
        left.plot(x, scores, 'o-', color=tone, label=name, lw=1.8, ms=3.5)
        middle.plot(curve.hours_at(at), scores, 'o-', color=tone, lw=1.8, ms=3.5)
        steps = [entry['step'] for entry in curve.train]
        losses = [task_loss(entry) for entry in curve.train]
        right.plot(steps, losses, color=tone, lw=1.0)
    left.set(title=f'{metric}, validation', xlabel=unit)
    middle.set(title=f'{metric}, validation', xlabel='hours of training')
    right.set(title='task loss, training', xlabel='iterations', yscale='log')
    left.legend(loc='best')
    for axes in row:
        axes.grid(color=GRID, lw=0.6)


def draw_classes(axes: Axes, metric: str, differences: Mapping[str, float]) -> None:
    """Draw the difference of each class, those most changed where there are many."""
    largest = sorted(differences, key=lambda name: -abs(differences[name]))
    names = sorted(largest[:MOST_CLASSES], key=lambda name: differences[name])
    values = [differences[name] for name in names]
    tones = [INKS[0] if value < 0 else INKS[2] for value in values]
    axes.barh(range(len(names)), values, color=tones)
    axes.set_yticks(range(len(names)), names, fontsize=min(9, 200 / len(names)))
    axes.axvline(0, color='#71717a', lw=0.8)
    axes.set(title='by class, second run less the first')


def draw_calibration(axes: Axes, calibrations: Mapping[str, Calibration]) -> None:
    """Draw precision against confidence."""
    axes.plot([0, 1], [0, 1], ':', color='#71717a', lw=1.2)
    for (name, each), tone in zip(calibrations.items(), INKS * len(calibrations)):
        label = f'{name} (error {100 * each.error:.1f} %)'
        axes.plot(each.confidence, each.precision, 'o-', color=tone, label=label, ms=4)
    axes.set(title='calibration', xlabel='confidence', ylabel='precision')
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(color=GRID, lw=0.6)
    axes.legend(loc='best')


def save(figure: Figure, path: Path) -> Path:
    """Write a figure and free it."""
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path
