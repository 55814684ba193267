"""The demo's pictures: learning curves, predictions and features side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from demo_models import (  # type: ignore[import-not-found]
    Arm,
    Scene,
    feature_maps,
    load_both,
    most_different,
    predict,
)
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mmselfdistill.commands.pictures import GRID, STYLE, save
from mmselfdistill.commands.runs import task_loss

INKS = [plt.get_cmap('tab10')(digit)[:3] for digit in range(10)]
DISTILLED, PLAIN = '#c2410c', '#1d4ed8'


def draw_all(folder: Path, arms: list[Arm], curves: list[Any], name: str) -> list[Path]:
    """Draw all pictures into a folder and return their paths.

    Args:
        folder: Where they are written.
        arms: The self-distilled arm and the plain one, both finished.
        curves: What each of them logged.
        name: Name of the metric.
    """
    segmentation = arms[0].cfg.default_scope == 'mmseg'
    with plt.rc_context(STYLE), torch.no_grad():
        paths = [draw_curves(folder / 'learning_curves.png', curves, name)]
        student, teacher, dataset = load_both(arms[0])
        scenes = predict(student, teacher, dataset)
        show = show_labels if segmentation else show_boxes
        chosen = most_different(scenes, 5)
        paths.append(draw_predictions(folder / 'predictions.png', chosen, show))
        level, maps = feature_maps(student, teacher, dataset, 4)
        paths.append(draw_features(folder / 'features.png', level, maps))
    return paths


def draw_curves(path: Path, curves: list[Any], name: str) -> Path:
    """Draw metric, task loss and distillation losses over the run."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    names = ('two generations', 'plain, same total length')
    for curve, label, tone in zip(curves, names, (DISTILLED, PLAIN)):
        at = np.array(sorted(curve.scores))
        scores = [curve.scores[i] for i in at]
        left.plot(at, scores, 'o-', color=tone, label=label, lw=2, ms=4)
        losses = [task_loss(entry) for entry in curve.train]
        x = np.array([e['step'] for e in curve.train]) * curve.length
        middle.plot(x / curve.train[-1]['step'], losses, color=tone, lw=1.2)
    terms = [k for k in curves[0].train[-1] if k.startswith('loss_sd_')]
    distilled = [e for e in curves[0].train if any(e.get(term) for term in terms)]
    x = [e['step'] / curves[0].train[-1]['step'] * curves[0].length for e in distilled]
    for term in terms:
        values = [e[term] for e in distilled]
        right.plot(x, values, lw=1.6, label=term[len('loss_sd_') :])
    for axes, title in (
        (left, f'{name}, validation'),
        (middle, 'task loss, training'),
        (right, 'distillation losses, training'),
    ):
        axes.set(title=title, xlabel=curves[0].unit, xlim=(0, curves[0].length))
        axes.axvline(curves[0].length / 2, color='#71717a', ls=':', lw=1.2)
        axes.grid(color=GRID, lw=0.6)
    left.set_ylim(0, None)
    left.annotate(
        'generation 2\nbegins ',
        (curves[0].length / 2, left.get_ylim()[1] * 0.45),
        ha='right',
        va='center',
        color='#52525b',
    )
    middle.set_yscale('log')
    right.set_yscale('log')
    left.legend(loc='lower right')
    right.legend(loc='center left')
    return save(figure, path)


def draw_predictions(
    path: Path, scenes: list[Scene], show: Callable[[Axes, Scene, Any], None]
) -> Path:
    """Draw truth, teacher and student of some scenes, one column a scene."""
    size = len(scenes)
    figure, grid = plt.subplots(3, size, figsize=(2.1 * size, 6.5), squeeze=False)
    for column, scene in zip(grid.T, scenes):
        for axes, what in zip(column, (scene.truth, scene.teacher, scene.student)):
            clean(axes)
            show(axes, scene, what)
    rows = ('ground truth', 'teacher\n(generation 1)', 'student\n(generation 2)')
    for axes, label in zip(grid[:, 0], rows):
        axes.set_ylabel(label, fontweight='bold')
    figure.suptitle('Validation scenes where teacher and student differ most')
    return save(figure, path)


def show_boxes(axes: Axes, scene: Scene, boxes: Any) -> None:
    """Draw a scene with boxes, each (x1, y1, x2, y2, label, score)."""
    # the picture is enlarged: pixels of the scene are half a pixel off its edges
    axes.imshow(scene.image, extent=(0, scene.width, scene.height, 0))
    for x1, y1, x2, y2, label, score in boxes:
        tone = INKS[int(label)]
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=tone, lw=1.8)
        )
        text = f'{label:.0f}' if score == 1 else f'{label:.0f}  {100 * score:.0f}%'
        style = dict(facecolor=tone, edgecolor='none', pad=1.2)
        y = y1 - 0.5 if y1 > 6 else y2 + 0.5
        va = 'bottom' if y1 > 6 else 'top'
        axes.text(
            x1, y, text, color='white', fontsize=7, va=va, bbox=style, clip_on=True
        )
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))


def show_labels(axes: Axes, scene: Scene, labels: Any) -> None:
    """Draw a scene with its label map: 0 background, 1-10 digits, 255 ignored."""
    grey = scene.image.mean(2, keepdims=True) / 255 * 0.75
    picture = np.repeat(grey, 3, axis=2)
    for digit in range(10):
        picture[labels == digit + 1] = INKS[digit]
    axes.imshow(picture, interpolation='nearest')
    for digit in range(10):
        rows, columns = np.nonzero(labels == digit + 1)
        if len(rows) >= 12:
            x, y = columns.max() + 1, rows.min()
            axes.text(
                min(x, scene.width - 6),
                max(y, 5),
                str(digit),
                color=INKS[digit],
                fontsize=9,
                fontweight='bold',
                bbox=dict(facecolor='white', edgecolor='none', pad=0.8, alpha=0.85),
            )


def draw_features(path: Path, level: str, maps: list[Any]) -> Path:
    """Draw scene, teacher's and student's feature map and their difference."""
    size = len(maps)
    figure, grid = plt.subplots(4, size, figsize=(2.1 * size, 8.2), squeeze=False)
    for column, (image, teacher, student, difference) in zip(grid.T, maps):
        top = max(teacher.max(), student.max())
        column[0].imshow(image)
        for axes, values in ((column[1], teacher), (column[2], student)):
            axes.imshow(values, cmap='viridis', vmin=0, vmax=top)
        column[3].imshow(difference, cmap='magma', vmin=0, vmax=top)
        for axes in column:
            clean(axes)
    rows = ('scene', 'teacher', 'student', 'difference')
    for axes, label in zip(grid[:, 0], rows):
        axes.set_ylabel(label, fontweight='bold')
    figure.suptitle(f'Features where they differ most: {level}')
    return save(figure, path)


def clean(axes: Axes) -> None:
    """Leave nothing of the axes but the picture."""
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
