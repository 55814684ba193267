"""Class scores of student and teacher next to each other."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from mmselfdistill.visualization.boxes import STUDENT, TEACHER
from mmselfdistill.visualization.panels import FONT, Panels, class_name

MOST_CLASSES = 6
_BAR = 0.38


def draw_class_scores(
    image: Any, student: Any, teacher: Any, classes: Sequence[str] | None
) -> Any:
    """Draw an image, and the scores of the classes that are likeliest in it.

    The difference is the missing overlap: half the sum of the absolute differences.

    Args:
        image (np.ndarray): (H, W, 3) of uint8, RGB.
        student (np.ndarray): (C,), its probabilities.
        teacher (np.ndarray): The same of the teacher.
        classes (Sequence[str], optional): Names of the classes. None: their numbers.

    Returns:
        np.ndarray: The picture, of uint8, RGB.
    """
    apart = np.abs(student - teacher).sum() / 2
    panels = Panels(image.shape, ['image', f'class scores, difference {apart:.2f}'])
    panels.show(0, image)
    likeliest = np.argsort(-np.maximum(student, teacher), kind='stable')[:MOST_CLASSES]
    axes = panels.axes[1]
    axes.set_axis_on()
    # names are written over the bars: the panel has no margin for them
    axes.set(xlim=(0, 1), ylim=(len(likeliest) - 0.4, -0.75), yticks=[])
    axes.tick_params(labelsize=FONT)
    axes.set_xlabel('probability', fontsize=FONT)
    handles = []
    for side, (name, colour, scores) in enumerate(
        (('student', STUDENT, student), ('teacher', TEACHER, teacher))
    ):
        at = np.arange(len(likeliest)) + _BAR * side
        values = scores[likeliest]
        handles.append(axes.barh(at, values, _BAR, color=colour, label=name))
    for row, label in enumerate(likeliest):
        name = class_name(classes, label)
        axes.text(0.01, row - 0.22, name, fontsize=FONT, va='bottom')
    panels.legend(0, handles, columns=2)
    return panels.render()
