"""Draws how the cost of each term grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from tools.benchmarks.results import short

_LABELS = dict(
    size='side of the images, pixels',
    batch='images in the batch',
    classes='classes',
    queries='queries',
    levels='levels of the pyramid',
    terms='terms',
)
Costs = Mapping[int, Mapping[str, float]]  # by the value on the axis, and by term


def draw(
    axes: Mapping[str, Mapping[str, Sequence[Any]]],
    ratios: Mapping[Any, Mapping[str, float]],
    path: Path,
) -> None:
    """Draw one row a model and one panel an axis, all in logarithms.

    Args:
        axes (Mapping): The points of each axis of each model.
        ratios (Mapping): Of points, the cost of each term as a ratio to the teacher's
            forward.
        path (Path): Of the picture.
    """
    rows, columns = len(axes), len(_LABELS)
    figure, panels = plt.subplots(
        rows, columns, squeeze=False, sharey='row', figsize=(3 * columns, 3 * rows)
    )
    names = list(dict.fromkeys(name for found in ratios.values() for name in found))
    colors = {name: f'C{index}' for index, name in enumerate(names)}
    for row, (model, each) in zip(panels, axes.items()):
        costs: dict[str, Costs] = {
            axis: {getattr(point, axis): ratios[point] for point in along}
            for axis, along in each.items()
        }
        # terms are measured one by one, so that some of them cost their sum
        every = list(ratios[each['batch'][0]].items())
        costs['terms'] = {n: dict(every[:n]) for n in range(1, len(every) + 1)}
        for panel, axis in zip(row, _LABELS):
            if axis in costs:
                _panel(panel, axis, costs[axis], colors)
            else:
                panel.axis('off')
        row[0].set_ylabel(f'{short(model)}\ncost / teacher forward')
    handles = [Line2D([], [], color=c, marker='o') for c in colors.values()]
    handles.append(Line2D([], [], color='black', linestyle='--'))
    labels = [*colors, 'all terms']
    figure.legend(handles, labels, loc='upper center', ncol=len(labels))
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _panel(panel: Any, axis: str, found: Costs, colors: Mapping[str, str]) -> None:
    panel.set_xscale('log')
    panel.set_yscale('log')
    for name, color in colors.items():
        values = [value for value in found if name in found[value]]
        costs = [found[value][name] for value in values]
        panel.plot(values, costs, color=color, marker='o', markersize=3)
    totals = [sum(costs.values()) for costs in found.values()]
    panel.plot(list(found), totals, color='black', linestyle='--')
    panel.set_xticks(list(found), [str(value) for value in found])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(_LABELS[axis])
    panel.grid(alpha=0.3)
