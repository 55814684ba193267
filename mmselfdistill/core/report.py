"""All that a run prints of what is distilled."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.box import ASCII
from rich.console import Console
from rich.table import Table

from mmselfdistill.core.teacher import cost_of

if TYPE_CHECKING:
    from mmselfdistill.core.distiller import Distiller


def describe(distiller: Distiller) -> str:
    """Return a table of what is distilled, and what the teacher costs."""
    table = Table('term', 'site', 'loss', 'weight', 'schedule', 'tensors', box=ASCII)
    for term in distiller.terms:
        table.add_row(
            term.name,
            term.site.name,
            type(term.loss).__name__,
            f'{distiller.loss_weight * term.weight:g}',
            term.schedule.type,
            ' '.join(distiller.shapes.get(term.name, [])),
        )
    parameters, size = cost_of(distiller.student)
    console = Console(width=110, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    plan = distiller.plan
    found = ''.join(
        f'Repeated too, since its output is used between two calls: {path}.\n'
        for path in distiller.found
    )
    skipped = ''.join(
        f'Not distilled: {name}: {why}.\n' for name, why in plan.skipped.items()
    )
    return (
        f'Self-distillation of {type(distiller.student).__name__} '
        f'({plan.name}):\n{capture.get()}{found}{skipped}'
        f'The teacher holds {parameters / 1e6:.2f} M parameters, {size:.1f} MiB, and '
        'no gradients or optimizer state.'
    )
