"""The demo's pictures: learning curves, and predictions side by side."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Sequence

import matplotlib.pyplot as plt
import mmcv
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from torch.nn.functional import interpolate

from mmselfdistill.commands import pictures
from mmselfdistill.commands.runs import Curve
from mmselfdistill.core.keys import LOSS
from tools.demo_arms import Arm
from tools.demo_models import MIN_SCORE, Scene, most_different, predict, rgb

# a scene of 64 pixels is too small for words in it
ENLARGED = 4


def draw_all(
    folder: Path, arms: list[Arm], curves: dict[str, Curve], name: str
) -> list[Path]:
    """Draw all pictures into a folder and return their paths.

    Args:
        folder: Where they are written.
        arms: The self-distilled arm and the plain one, both finished.
        curves: What each of them logged, by its title.
        name: Name of the metric.
    """
    with plt.rc_context(pictures.STYLE), torch.no_grad():
        paths = [draw_curves(folder / 'learning_curves.png', curves, name)]
        scenes, meta = predict(*arms)
        visualizer = make_visualizer(arms[0].cfg.default_scope, meta)
        columns = [draw_scene(visualizer, each) for each in most_different(scenes, 6)]
        title = 'Validation scenes on which both runs differ most'
        rows = 'ground truth', 'plain', arms[0].title.replace(' ', '\n', 1)
        paths.append(draw_grid(folder / 'predictions.png', title, rows, columns))
    return paths


def draw_curves(path: Path, curves: dict[str, Curve], name: str) -> Path:
    """Draw metric and task loss of both runs, and the first one's distillation."""
    figure, grid = plt.subplots(1, 4, figsize=(17, 3.8))
    pictures.draw_curves(grid[:3], name, curves)
    distilled = next(iter(curves.values()))
    terms = [key for key in distilled.train[-1] if key.startswith(LOSS)]
    taught = [e for e in distilled.train if any(e.get(term) for term in terms)]
    for term in terms:
        steps, values = [e['step'] for e in taught], [e[term] for e in taught]
        grid[3].plot(steps, values, lw=1.6, label=term[len(LOSS) :])
    title = 'distillation losses'
    grid[3].set(title=title, xlabel='iterations', yscale='log')
    grid[3].grid(color=pictures.GRID, lw=0.6)
    grid[3].legend(loc='best')
    return pictures.save(figure, path)


def make_visualizer(scope: str, meta: Any) -> Any:
    """Return the framework's own visualizer."""
    kinds = dict(mmdet='DetLocalVisualizer', mmseg='SegLocalVisualizer')
    visualizer = VISUALIZERS.build(dict(type=f'{scope}.{kinds[scope]}', name='demo'))
    visualizer.dataset_meta = meta
    return visualizer


def draw_scene(visualizer: Any, scene: Scene) -> list[Any]:
    """Return the ground truth, and what both models predict, as pictures."""
    image = mmcv.imrescale(rgb(scene.image), ENLARGED, interpolation='nearest')
    return [
        draw_sample(visualizer, image, scene.plain, truth=True),
        draw_sample(visualizer, image, scene.plain),
        draw_sample(visualizer, image, scene.distilled),
    ]


def draw_sample(visualizer: Any, image: Any, sample: Any, truth: bool = False) -> Any:
    """Return an enlarged image with the labels or the predictions of a sample."""
    sample = copy.deepcopy(sample)
    options: dict[str, Any] = dict(draw_gt=truth, draw_pred=not truth)
    if 'pred_sem_seg' in sample:
        for key in ('gt_sem_seg', 'pred_sem_seg'):
            labels = getattr(sample, key).data[None].float()
            large = interpolate(labels, image.shape[:2])[0].long()
            setattr(sample, key, PixelData(data=large))
    else:
        options['pred_score_thr'] = MIN_SCORE
        for found in (sample.gt_instances, sample.pred_instances):
            found.bboxes = getattr(found.bboxes, 'tensor', found.bboxes) * ENLARGED
    visualizer.add_datasample('scene', image, sample, **options)
    return visualizer.get_image()


def draw_grid(
    path: Path, title: str, rows: Sequence[str], columns: Sequence[Sequence[Any]]
) -> Path:
    """Draw columns of pictures."""
    shape = len(rows), len(columns)
    figure, grid = plt.subplots(
        *shape, figsize=(2.1 * shape[1], 2.05 * shape[0]), squeeze=False
    )
    for column, images in zip(grid.T, columns):
        for axes, image in zip(column, images):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, label in zip(grid[:, 0], rows):
        axes.set_ylabel(label, fontweight='bold')
    figure.suptitle(title)
    return pictures.save(figure, path)
