"""Label maps of student and teacher next to each other."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.patches import Patch

from mmselfdistill.visualization.panels import FONT, LEGEND, TITLE, Panels, class_name

MOST_NAMES = 12  # a legend of two panels holds as many
_OPACITY = 0.65
_TICKS = (0, 0.01, 0.05, 0.2, 0.5, 1)


def draw_label_maps(
    image: Any,
    student: Any,
    teacher: Any,
    difference: Any,
    meaning: str,
    classes: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
) -> Any:
    """Draw two label maps over an image, and the map of their difference.

    Args:
        image (np.ndarray): (H, W, 3) of uint8, RGB.
        student (np.ndarray): (H, W), the class of each pixel.
        teacher (np.ndarray): The same of the teacher.
        difference (np.ndarray): (H, W), from 0 to 1.
        meaning (str): What the difference is; written under its colour bar.
        classes (Sequence[str], optional): Names of the classes. None: their numbers.
        palette (Sequence, optional): A colour (R, G, B) of each. None: matplotlib's.

    Returns:
        np.ndarray: The picture, of uint8, RGB.
    """
    apart = 100 * float((student != teacher).mean())
    titles = ['student', 'teacher', f'difference: {apart:.1f} % of the labels']
    panels = Panels(image.shape, titles)
    image, student, teacher, difference = map(
        panels.thinned, (image, student, teacher, difference)
    )
    present, counts = np.unique(np.stack([student, teacher]), return_counts=True)
    colours = {int(label): _colour(palette, int(label)) for label in present}
    for panel, labels in enumerate((student, teacher)):
        layer = np.zeros((*labels.shape, 3))
        for label, colour in colours.items():
            layer[labels == label] = colour
        blended = _OPACITY * layer + (1 - _OPACITY) * image / 255
        panels.show(panel, blended, interpolation='nearest')
    _colour_bar(panels, difference, meaning)
    common = present[np.argsort(-counts, kind='stable')][:MOST_NAMES]
    handles = [
        Patch(color=colours[label], label=class_name(classes, label))
        for label in sorted(int(each) for each in common)
    ]
    if len(present) > len(common):
        more = f'and {len(present) - len(common)} more'
        handles.append(Patch(alpha=0, label=more))
    panels.legend(0, handles, columns=max(1, 2 * panels.across // 110))
    return panels.render()


def _colour_bar(panels: Panels, difference: Any, meaning: str) -> None:
    # a fixed scale, so that pictures compare; the root shows small differences too
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    shown = panels.show(
        2, difference, cmap='viridis', norm=norm, interpolation='nearest'
    )
    top = TITLE + panels.down + 8
    axes = panels.place(panels.left(2) + 8, top, panels.across - 16, 12)
    bar = panels.figure.colorbar(shown, cax=axes, orientation='horizontal')
    bar.set_ticks(_TICKS, labels=[f'{tick:g}' for tick in _TICKS])
    bar.ax.tick_params(labelsize=FONT - 1.5, pad=2)
    bar.set_label(meaning, fontsize=FONT, labelpad=2)
    assert top + 12 < TITLE + panels.down + LEGEND


def _colour(palette: Sequence[Sequence[int]] | None, label: int) -> Any:
    if palette is not None and label < len(palette):
        return np.array(palette[label]) / 255
    return np.array(colormaps['tab20'](label % 20)[:3])
