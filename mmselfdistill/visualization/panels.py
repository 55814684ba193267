"""Panels of one size next to each other, each with a title and a legend."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

AREA = 460 * 460  # pixels of a panel, of any shape
NARROWEST = 320  # a legend needs as much
TALLEST = 4000
GAP = 12
TITLE = 30
LEGEND = 62
DPI = 100
FONT = 9.5
_LINE = 13  # of the labels in an image, in pixels


def class_name(classes: Sequence[str] | None, label: Any) -> str:
    """Return the name of a class, or its number where it has none."""
    # they may be an array
    if classes is None or label >= len(classes):
        return str(label)
    return str(classes[label])


class Panels:
    """A picture of a few panels over images of one shape.

    The panels lie at fixed pixels: the pixel (x, y) of the image is drawn at
    ``left(panel) + scale * x`` and ``TITLE + scale * y`` of the picture.

    Args:
        shape (Sequence[int]): Height and width of the image.
        titles (Sequence[str]): Of the panels, from left to right.
    """

    def __init__(self, shape: Sequence[int], titles: Sequence[str]) -> None:
        self.height, self.width = shape[:2]
        area = self.height * self.width
        scale = max((AREA / area) ** 0.5, NARROWEST / self.width)
        self.scale = min(scale, TALLEST / self.height)
        # of an image that is far larger than its panel, not every pixel is drawn
        self._step = max(1, int(1 / (2 * self.scale)))
        self.across = round(self.scale * self.width)
        self.down = round(self.scale * self.height)
        count = len(titles)
        self.size = (
            TITLE + self.down + LEGEND,
            count * self.across + (count + 1) * GAP,
        )
        inches = (self.size[1] / DPI, self.size[0] / DPI)
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor='white')
        self._canvas: Any = FigureCanvasAgg(self.figure)
        self._labels: list[list[tuple[float, float, float]]] = [[] for _ in titles]
        self.axes = [self._panel(i, title) for i, title in enumerate(titles)]

    def left(self, panel: int) -> int:
        """Return the first column of a panel, in pixels of the picture."""
        return GAP + panel * (self.across + GAP)

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes at a rectangle of the picture, in pixels from its top left."""
        high, wide = self.size
        bottom = high - top - height
        return self.figure.add_axes(
            (left / wide, bottom / high, width / wide, height / high)
        )

    def _panel(self, index: int, title: str) -> Axes:
        axes = self.place(self.left(index), TITLE, self.across, self.down)
        axes.set_title(title, fontsize=FONT + 1.5, fontweight='bold', loc='left', pad=5)
        axes.set_axis_off()
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        return axes

    def thinned(self, image: Any) -> Any:
        """Return the pixels of an image or a map that are drawn: rows and columns."""
        return image[:: self._step, :: self._step]

    def show(self, panel: int, image: Any, **how: Any) -> Any:
        """Draw an array over a whole panel; ``how`` is matplotlib's ``imshow``'s."""
        extent = (0, self.width, self.height, 0)
        return self.axes[panel].imshow(image, extent=extent, aspect='auto', **how)

    def label(self, panel: int, x: float, y: float, text: str, colour: str) -> None:
        """Write a text above a point of the image, below those that are there."""
        placed = self._labels[panel]
        x, y = (min(max(v, 0.0), end) for v, end in ((x, self.width), (y, self.height)))
        at = (self.scale * x, max(self.scale * y, _LINE))
        wide = 5.5 * len(text)
        while any(
            abs(at[1] - other[1]) < _LINE
            and other[0] - wide < at[0] < other[0] + other[2]
            for other in placed
        ):
            at = (at[0], at[1] + _LINE)
        placed.append((*at, wide))
        self.axes[panel].text(
            at[0] / self.scale,
            at[1] / self.scale,
            text,
            fontsize=7.5,
            va='bottom',
            clip_on=True,
            bbox=dict(facecolor=colour, edgecolor='none', pad=0.8),
        )

    def note(self, panel: int, text: str) -> None:
        """Write a line under a panel."""
        high, wide = self.size
        place = self.left(panel) / wide, (LEGEND - 8) / high
        self.figure.text(*place, text, fontsize=FONT, va='top')

    def legend(self, panel: int, handles: Sequence[Any], columns: int) -> None:
        """Write a legend under a panel, from its left edge on."""
        top = TITLE + self.down
        axes = self.place(self.left(panel), top, self.across, LEGEND)
        axes.set_axis_off()
        axes.legend(
            handles=list(handles),
            loc='upper left',
            ncol=columns,
            fontsize=FONT,
            frameon=False,
            borderaxespad=0,
            borderpad=0.5,
            columnspacing=1.0,
            handlelength=1.6,
        )

    def render(self) -> Any:
        """Return the picture, (height, width, 3) of uint8, RGB."""
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()
