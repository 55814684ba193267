"""What is drawn of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from mmselfdistill.commands.pictures import (
    INKS,
    STYLE,
    draw_calibration,
    draw_classes,
    draw_comparison,
    draw_counts,
    draw_curves,
    draw_losses,
    draw_metric,
)
from mmselfdistill.commands.predictions import Calibration
from mmselfdistill.commands.runs import Curve


def test_every_curve_is_told_apart_and_named() -> None:
    curve = Curve('epochs', 1, [dict(step=10.0, at=1.0, time=1.0, loss=1.0)], {1: 5.0})
    axes = plt.figure().subplots(1, 3)
    names = ['_plain', *(f'run {i}' for i in range(20))]
    draw_curves(axes, 'mIoU', dict.fromkeys(names, curve))
    looks = {(line.get_color(), line.get_marker()) for line in axes[0].lines}
    assert len(looks) == 21
    (legend,) = axes[0].figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == names


def test_powers_of_ten_are_no_text() -> None:
    # a $ in a name is text, those of matplotlib's own labels are not
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.set(yscale='log', ylim=(1e-3, 1))
        figure.canvas.draw()
        labels = [each for each in axes.get_yticklabels() if '$' in each.get_text()]
        assert labels and all(each.get_parse_math() for each in labels)


def test_a_count_is_drawn_without_percent() -> None:
    curve = Curve('epochs', 1, [dict(step=10.0, at=1.0, time=1.0, loss=1.0)], {1: 5.0})
    for metric, each in (('mIoU, %', curve), ('mot/FP', replace(curve, percent=False))):
        axes = plt.figure().subplots(1, 2)
        draw_metric(*axes, metric.partition(',')[0], dict(run=each))
        assert [each.get_ylabel() for each in axes] == [metric, metric]


def test_the_picture_has_a_panel_for_all_that_is_known(tmp_path: Path) -> None:
    scores, steps = {1: 10.0, 2: 20.0}, [dict(step=10.0, at=1.0, time=1.0, loss=1.0)]
    curve = Curve('epochs', 2, steps, scores)
    calibration = Calibration(*np.array([[0.35, 1.0], [0.2, 0.9], [40, 5]]))
    drawn = {}
    figure = plt.figure()
    for name, draw, given in (
        ('classes', draw_classes, (['p', 'q'], dict(a=2.0, b=-1.5))),
        ('counts', draw_counts, (dict(p=calibration, q=calibration),)),
        ('calibration', draw_calibration, (dict(p=calibration),)),
    ):
        drawn[name] = figure.add_subplot()
        draw(drawn[name], *given)
    bars = drawn['classes'].patches
    assert [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in bars] == [
        (-1.5, INKS[0]),
        (2.0, INKS[1]),
    ]
    assert drawn['classes'].get_xlabel() == 'q − p, percentage points'
    # next to each other, in the bins of 30 to 40 and of 90 to 100 %
    bars = drawn['counts'].patches
    assert [bar.get_height() for bar in bars] == [40, 5, 40, 5]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert centres == pytest.approx([33, 93, 37, 97])
    line = drawn['calibration'].lines[1]
    assert line.get_xydata().tolist() == [[35, 20], [100, 90]]
    # a run and its teacher have one training
    draw_losses(plt.figure().add_subplot(), dict(p=curve, q=replace(curve)))
    assert [line.get_label() for line in plt.gca().lines] == ['p']
    draw_comparison(tmp_path / 'a.png', dict(mIoU=dict(p=curve)), {}, {})
    assert cv2.imread(str(tmp_path / 'a.png')).shape == (462, 1430, 3)
