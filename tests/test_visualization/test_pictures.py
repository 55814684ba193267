"""Pixels of the pictures: what is drawn where, and in which colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from mmselfdistill.visualization.boxes import BOTH, OTHER, STUDENT, TEACHER, draw_boxes
from mmselfdistill.visualization.class_scores import draw_class_scores
from mmselfdistill.visualization.differences import Boxes
from mmselfdistill.visualization.label_maps import draw_label_maps
from mmselfdistill.visualization.panels import GAP, LEGEND, TITLE, Panels

# 460 pixels a side, of an image of 46
SCALE = 10
IMAGE = np.full((46, 46, 3), 100, np.uint8)


def boxes(*rows: tuple[tuple[int, int, int, int], int, float]) -> Boxes:
    corners, labels, scores = zip(*rows)
    return Boxes(np.array(corners, np.float32), np.array(labels), np.array(scores))


def at(picture: Any, panel: int, x: float, y: float) -> list[int]:
    """Return the colour of the picture at a point of the image."""
    left = GAP + panel * (SCALE * 46 + GAP)
    found: list[int] = picture[
        round(TITLE + SCALE * y), round(left + SCALE * x)
    ].tolist()
    return found


def rgb(colour: str) -> list[int]:
    return [round(255 * part) for part in to_rgb(colour)]


@pytest.mark.parametrize(
    ('shape', 'panel'),
    [
        ((46, 46), (460, 460)),
        # as large an area, and a panel that a legend fits under
        ((400, 1600), (230, 920)),
        ((1200, 300), (1280, 320)),
        ((3000, 30), (4000, 40)),
    ],
)
def test_the_size_of_a_picture(shape: tuple[int, int], panel: tuple[int, int]) -> None:
    picture = Panels(shape, ['a', 'b', 'c']).render()
    high, wide = panel
    assert picture.shape == (TITLE + high + LEGEND, 3 * wide + 4 * GAP, 3)


def test_of_a_large_map_not_every_pixel_is_drawn() -> None:
    image = np.zeros((2300, 4600, 3), np.uint8)
    labels = np.zeros((2300, 4600), int)
    labels[:, 2300:] = 1
    difference = (labels == 1).astype(np.float32)
    palette = [[255, 0, 0], [0, 0, 255]]
    panels = Panels(image.shape, ['a'])
    # 651 pixels across: two of the map for each are enough
    assert panels.thinned(labels).shape == (767, 1534)
    picture = draw_label_maps(
        image, labels, 1 - labels, difference, 'x', ['a', 'b'], palette
    )
    middle = TITLE + panels.down // 2
    for panel, colours in enumerate((palette, palette[::-1])):
        for part, colour in enumerate(colours):
            x = panels.left(panel) + panels.across * (1 + 2 * part) // 4
            expected = [round(0.65 * value) for value in colour]
            assert np.abs(picture[middle, x].astype(int) - expected).max() <= 1


def test_boxes_have_the_colour_of_what_they_are() -> None:
    student = boxes(
        ((2, 8, 12, 18), 0, 0.9), ((16, 8, 26, 18), 1, 0.6), ((30, 8, 40, 18), 2, 0.5)
    )
    teacher = boxes(
        ((2, 8, 12, 18), 0, 0.5), ((16, 8, 26, 18), 3, 0.6), ((30, 30, 40, 40), 2, 0.5)
    )
    picture = draw_boxes(IMAGE, student, teacher, None, 0.3)
    # the middle of the lower edges, where no text is
    for x in (7, 21, 35):
        assert at(picture, 0, x, 18) == rgb(STUDENT)
    assert at(picture, 1, 7, 18) == at(picture, 1, 35, 40) == rgb(TEACHER)
    assert at(picture, 2, 7, 18) == rgb(BOTH)
    assert at(picture, 2, 21, 18) == rgb(OTHER)
    assert at(picture, 2, 35, 18) == rgb(STUDENT)
    assert at(picture, 2, 35, 40) == rgb(TEACHER)
    # and nothing inside of a box
    assert at(picture, 2, 35, 13) == at(picture, 0, 44, 44) == [100] * 3


def test_of_masks_the_pixels_of_one_alone() -> None:
    masks = np.zeros((2, 1, 46, 46), bool)
    masks[0, 0, 10:30, 10:30] = masks[1, 0, 10:30, 20:40] = True
    student, teacher = boxes(((1, 1, 45, 45), 0, 0.5)), boxes(((1, 1, 45, 45), 0, 0.5))
    student.masks, teacher.masks = masks
    picture = draw_boxes(IMAGE, student, teacher, None, 0.3)
    for x, colour in ((15, STUDENT), (35, TEACHER)):
        half = [(100 + part) / 2 for part in rgb(colour)]
        assert at(picture, 2, x, 20) == pytest.approx(half, abs=1)
        assert at(picture, int(x == 35), x, 20) == pytest.approx(half, abs=1)
    # of both, of none, and of the other
    assert at(picture, 2, 25, 20) == at(picture, 2, 25, 35) == [100] * 3
    assert at(picture, 0, 35, 20) == [100] * 3


def test_label_maps_and_the_map_of_their_difference() -> None:
    student, teacher = np.zeros((2, 46, 46), int)
    student[:, 20:], teacher[:, 30:] = 1, 1
    difference = np.zeros((46, 46), np.float32)
    difference[:, 20:30] = 0.25
    palette = [[200, 0, 0], [0, 0, 200]]
    picture = draw_label_maps(
        IMAGE, student, teacher, difference, 'a', ('x', 'y'), palette
    )
    red, blue = ([round(0.65 * v + 35) for v in colour] for colour in palette)
    for panel, expected in ((0, (red, blue, blue)), (1, (red, red, blue))):
        for x, colour in zip((10, 25, 40), expected):
            assert at(picture, panel, x, 5) == pytest.approx(colour, abs=1)
    # by the root of the difference, on a scale from 0 to 1
    shown = [rgb(colormaps['viridis'](value)) for value in (0.0, 0.5)]
    assert at(picture, 2, 10, 5) == pytest.approx(shown[0], abs=1)
    assert at(picture, 2, 25, 5) == pytest.approx(shown[1], abs=3)


def test_bars_of_class_scores() -> None:
    student, teacher = np.array([0.1, 0.8, 0.1]), np.array([0.1, 0.4, 0.5])
    picture = draw_class_scores(IMAGE, student, teacher, None)
    assert picture.shape == (TITLE + 460 + LEGEND, 2 * 460 + 3 * GAP, 3)
    # the likeliest class is the first: its bars end at 0.8 and 0.4 of the panel
    panel = picture[TITLE : TITLE + 460, 2 * GAP + 460 :]
    for share, colour, longest in ((0.0, STUDENT, 0.8), (0.38, TEACHER, 0.4)):
        row = panel[round(460 * (share + 0.75) / (2.6 + 0.75))]
        ends = np.flatnonzero((row == rgb(colour)).all(-1))
        assert ends.max() == pytest.approx(longest * 460, abs=3)
