"""The picture of several runs: curves, classes and calibration."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence, TypeVar

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mmselfdistill.commands.predictions import BINS, Calibration
from mmselfdistill.commands.runs import Curve, task_loss

_Value = TypeVar('_Value')
GRID = '#d4d4d8'
# told apart by colour-blind readers too (Okabe and Ito), and by their markers
INKS = ('#d55e00', '#0072b2', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#525252')
# one more than there are colours: 56 runs differ in one of them
MARKS = 'os^Dv<>P'
MOST_CLASSES = 25  # of more, the names would be too small to read
COLUMNS = 4  # of the legend of all panels
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
    curves: Mapping[str, Mapping[str, Curve]],
    differences: Mapping[str, float],
    calibrations: Mapping[str, Calibration],
) -> None:
    """Draw several runs.

    Args:
        path (Path): The picture to write.
        curves (Mapping[str, Mapping[str, Curve]]): Of each metric, by the run's name.
        differences (Mapping[str, float]): Of each class, between the first two runs;
            may be empty.
        calibrations (Mapping[str, Calibration]): Of the runs' predictions; may be
            empty.
    """
    # a run or a class may have a $ in its name, which is no formula
    curves = {_plain(m): _renamed(each) for m, each in curves.items()}
    differences, calibrations = _renamed(differences), _renamed(calibrations)
    rows = len(curves) + bool(differences or calibrations)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, 3, figsize=(13, 4.2 * rows), squeeze=False)
        first, *others = curves.items()
        draw_curves(grid[0], *first)
        for row, (metric, each) in zip(grid[1:], others):
            draw_metric(row[0], row[1], metric, each)
            row[2].set_visible(False)
        free = list(grid[len(curves)]) if rows > len(curves) else []
        if differences:
            draw_classes(free.pop(0), list(first[1]), differences)
        if calibrations:
            draw_calibration(free.pop(0), calibrations)
            draw_counts(free.pop(0), calibrations)
        for axes in free:
            axes.set_visible(False)
        save(figure, path)


def _renamed(named: Mapping[str, _Value]) -> dict[str, _Value]:
    return {_plain(name): value for name, value in named.items()}


def _plain(name: str) -> str:
    return name.replace('$', r'\$')


def draw_curves(row: Any, metric: str, curves: Mapping[str, Curve]) -> None:
    """Draw a metric by length and by time, the task's loss, and the figure's legend."""
    left, middle, right = row
    draw_metric(left, middle, metric, curves)
    draw_losses(right, curves)
    # above the panels: on them, long names would hide the curves
    named = left.get_legend_handles_labels()
    left.figure.legend(*named, loc='upper center', ncol=COLUMNS)


def draw_metric(
    left: Axes, right: Axes, metric: str, curves: Mapping[str, Curve]
) -> None:
    """Draw a metric by length and by time."""
    # of another unit than the rest: all by iteration
    units = {curve.unit for curve in curves.values()}
    unit = units.pop() if len(units) == 1 else 'iterations'
    longest = max(curve.hours_at([curve.length])[0] for curve in curves.values())
    time, factor = ('minutes', 60) if longest < 1 else ('hours', 1)
    for (name, curve), tone, mark in _styled(curves):
        how: Any = dict(marker=mark, color=tone, label=name, lw=1.8, ms=4.5)
        at = np.array(sorted(curve.scores))
        scores = [curve.scores[i] for i in at]
        x = at if unit == curve.unit else [curve.iterations_at(i) for i in at]
        left.plot(x, scores, **how)
        right.plot(curve.hours_at(at) * factor, scores, **how)
    left.set(title='validation, by length', xlabel=unit)
    right.set(title='validation, by time', xlabel=f'{time} of training')
    left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.xaxis.set_major_locator(MaxNLocator(6))
    in_percent = all(curve.percent for curve in curves.values())
    for axes in (left, right):
        axes.set_ylabel(f'{metric}, %' if in_percent else metric)
        axes.grid(color=GRID, lw=0.6)


def draw_losses(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw the loss on labels, once for a run and its teacher."""
    drawn: list[int] = []
    for (name, curve), tone, _ in _styled(curves):
        if id(curve.train) in drawn:
            continue
        drawn.append(id(curve.train))
        steps = [entry['step'] for entry in curve.train]
        losses = [task_loss(entry) for entry in curve.train]
        axes.plot(steps, losses, color=tone, label=name, lw=1.2)
    axes.set(title='training', xlabel='iterations', ylabel='task loss', yscale='log')
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    # 0.6, not 6 x 10^-1
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.grid(color=GRID, lw=0.6)


def draw_classes(
    axes: Axes, names: Sequence[str], differences: Mapping[str, float]
) -> None:
    """Draw the difference of each class, those most changed where there are many.

    A bar has the colour of the run that is better.

    Args:
        axes (Axes): To draw on.
        names (Sequence[str]): Of the runs; the first two are compared.
        differences (Mapping[str, float]): Of each class, the second less the first.
    """
    first, second = names[:2]
    largest = sorted(differences, key=lambda name: -abs(differences[name]))
    shown = sorted(largest[:MOST_CLASSES], key=lambda name: differences[name])
    values = [differences[name] for name in shown]
    tones = [INKS[0] if value < 0 else INKS[1] for value in values]
    bars = axes.barh(range(len(shown)), values, color=tones)
    size = min(9, 200 / len(shown))
    axes.set_yticks(range(len(shown)), shown, fontsize=size)
    axes.bar_label(bars, fmt='%+.1f', fontsize=size, padding=2)
    axes.margins(x=0.15)
    axes.axvline(0, color='#71717a', lw=0.8)
    rest = len(differences) - len(shown)
    more = f', {len(shown)} most changed' if rest else ''
    axes.set(title=f'by class{more}', ylabel='class')
    axes.set_xlabel(f'{second} − {first}, percentage points')


def draw_calibration(axes: Axes, calibrations: Mapping[str, Calibration]) -> None:
    """Draw precision against confidence."""
    axes.plot([0, 100], [0, 100], ':', color='#71717a', lw=1.2)
    for (name, each), tone, mark in _styled(calibrations):
        label = f'{name}, error {100 * each.error:.1f} %'
        x, y = 100 * each.confidence, 100 * each.precision
        axes.plot(x, y, marker=mark, color=tone, label=label, ms=4.5, clip_on=False)
    axes.set(title='calibration', xlabel='confidence, %', ylabel='precision, %')
    axes.set(xlim=(0, 100), ylim=(0, 100))
    for x, y, side, text in (
        (2, 98, 'top', 'too unsure'),
        (98, 2, 'bottom', 'too sure'),
    ):
        where = 'left' if x < 50 else 'right'
        axes.text(x, y, text, ha=where, va=side, color='#52525b', style='italic')
    axes.grid(color=GRID, lw=0.6)
    # below the note; of many runs it lies over their curves
    how: Any = dict(frameon=True, facecolor='white', edgecolor='none', framealpha=0.8)
    axes.legend(loc='upper left', bbox_to_anchor=(0.0, 0.93), **how)


def draw_counts(axes: Axes, calibrations: Mapping[str, Calibration]) -> None:
    """Draw how many predictions are in each bin of confidence."""
    width = 100 / BINS / (len(calibrations) + 0.5)
    for place, ((name, each), tone, _) in enumerate(_styled(calibrations)):
        bins = np.minimum((BINS * each.confidence).astype(int), BINS - 1)
        offset = (place - (len(calibrations) - 1) / 2) * width
        centres = 100 * (bins + 0.5) / BINS + offset
        label = f'{name}, {each.count.sum():,.0f} in all'
        axes.bar(centres, each.count, width, color=tone, label=label)
    axes.set(title='predictions in each bin', xlabel='confidence, %', xlim=(0, 100))
    axes.set(ylabel='predictions', yscale='log')
    axes.set_xticks(np.linspace(0, 100, BINS + 1))
    axes.grid(color=GRID, lw=0.6, axis='y')
    axes.set_axisbelow(True)
    # room for the legend above the highest bar
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.12 * len(calibrations) + 0.05))
    axes.legend(loc='upper left')


def _styled(named: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], str, str]]:
    """Yield each item with the colour and the marker of its run."""
    # matplotlib leaves what begins with _ out of a legend
    items = [(f' {k}' if k.startswith('_') else k, v) for k, v in named.items()]
    yield from zip(items, itertools.cycle(INKS), itertools.cycle(MARKS))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, with room for its legend above the panels, and free it."""
    rows = sum(math.ceil(len(x.get_texts()) / COLUMNS) for x in figure.legends)
    inches = 0.1 + 0.22 * rows if rows else 0.0
    figure.tight_layout(rect=(0, 0, 1, 1 - inches / figure.get_figheight()))
    figure.savefig(path)
    plt.close(figure)
    return path
