"""Boxes and masks of student and teacher next to each other."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from mmselfdistill.visualization.differences import Boxes, match
from mmselfdistill.visualization.panels import Panels, class_name

# told apart by colour-blind readers too (Okabe and Ito)
STUDENT = '#e69f00'
TEACHER = '#56b4e9'
OTHER = '#cc79a7'
BOTH = '#d4d4d8'
NOTEWORTHY = 0.05  # a smaller change of score is not written
_OUTLINE = [withStroke(linewidth=3.6, foreground='black')]


def draw_boxes(
    image: Any,
    student: Boxes,
    teacher: Boxes,
    classes: Sequence[str] | None,
    score_thr: float,
) -> Any:
    """Draw what student and teacher find in an image, and where they differ.

    The third panel has the boxes that one of them alone has found, the pairs at one
    place but of two classes, and in grey those of both, with the teacher's score less
    the student's where that is at least 0.05. Of masks it has the pixels of one of them
    alone.

    Args:
        image (np.ndarray): (H, W, 3) of uint8, RGB.
        student (Boxes): Of the student.
        teacher (Boxes): Of the teacher.
        classes (Sequence[str], optional): Names of the classes. None: their numbers.
        score_thr (float): The lowest score of a box; written under the first panel.

    Returns:
        np.ndarray: The picture, of uint8, RGB.
    """
    titles = [
        f'{who}: {len(boxes)} box{"" if len(boxes) == 1 else "es"}'
        for who, boxes in (('student', student), ('teacher', teacher))
    ]
    panels = Panels(image.shape, [*titles, 'difference'])
    for panel in range(3):
        panels.show(panel, panels.thinned(image))
    areas = [panels.thinned(each.area(image.shape[:2])) for each in (student, teacher)]
    for panel, (boxes, colour) in enumerate(((student, STUDENT), (teacher, TEACHER))):
        _fill(panels, panel, areas[panel], colour)
        _fill(panels, 2, areas[panel] & ~areas[1 - panel], colour)
        _draw(panels, panel, boxes, range(len(boxes)), colour, classes)
    panels.note(0, f'class and score of each box, from a score of {score_thr:g} on')
    panels.legend(2, _differences(panels, student, teacher, classes), columns=2)
    return panels.render()


def _differences(
    panels: Panels, student: Boxes, teacher: Boxes, classes: Sequence[str] | None
) -> list[Any]:
    """Draw the boxes of the third panel, and return its legend."""
    found = match(student, teacher)
    for i, j in found.same:
        more = float(teacher.scores[j] - student.scores[i])
        text = f'{more:+.2f}' if abs(more) >= NOTEWORTHY else ''
        _box(panels, 2, teacher.corners[j], BOTH, text)
    for i, j in found.other:
        sides = (student.labels[i], teacher.labels[j])
        text = ' → '.join(class_name(classes, label) for label in sides)
        _box(panels, 2, teacher.corners[j], OTHER, text)
    _draw(panels, 2, student, found.first, STUDENT, classes)
    _draw(panels, 2, teacher, found.second, TEACHER, classes)
    entries = (
        (STUDENT, f'student only ({len(found.first)})'),
        (TEACHER, f'teacher only ({len(found.second)})'),
        (OTHER, f'classes differ ({len(found.other)})'),
        (BOTH, f'both, change of score ({len(found.same)})'),
    )
    return [
        Line2D([], [], color=colour, lw=2, label=label, path_effects=_OUTLINE)
        for colour, label in entries
    ]


def _draw(
    panels: Panels,
    panel: int,
    boxes: Boxes,
    chosen: Iterable[int],
    colour: str,
    classes: Sequence[str] | None,
) -> None:
    for i in chosen:
        text = f'{class_name(classes, boxes.labels[i])} {boxes.scores[i]:.2f}'
        _box(panels, panel, boxes.corners[i], colour, text)


def _box(panels: Panels, panel: int, corners: Any, colour: str, text: str) -> None:
    left, top, right, bottom = (float(value) for value in corners)
    panels.axes[panel].add_patch(
        Rectangle(
            (left, top),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=colour,
            linewidth=1.8,
            path_effects=_OUTLINE,
        )
    )
    if text:
        panels.label(panel, left, top, text, colour)


def _fill(panels: Panels, panel: int, area: Any, colour: str) -> None:
    if area.any():
        layer = np.zeros((*area.shape, 4))
        layer[area] = to_rgba(colour, 0.5)
        panels.show(panel, layer, interpolation='nearest')
