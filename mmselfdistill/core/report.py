"""All that a run prints of what is distilled."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.box import ASCII
from rich.console import Console
from rich.table import Table

from mmselfdistill.core.modes import has_batch_norms_that_train
from mmselfdistill.core.teacher import cost_of

if TYPE_CHECKING:
    from mmselfdistill.core.distiller import Distiller


def describe(distiller: Distiller) -> str:
    """Return a table of what is distilled, and what the teacher costs."""
    parameters, size = cost_of(distiller.student)
    plan = distiller.labeled.plan
    paths = [path for each in distiller.comparisons() for path in each.found]
    found = ''.join(
        f'Repeated too, since its output is used between two calls: {path}.\n'
        for path in dict.fromkeys(paths)
    )
    skipped = ''.join(
        f'Not distilled: {name}: {why}.\n' for name, why in plan.skipped.items()
    )
    return (
        f'Self-distillation of {type(distiller.student).__name__} '
        f'({plan.name}):\n{_table(distiller)}{_unweighted(distiller)}{found}'
        f'{_reused(distiller)}{_normed(distiller)}{_seen(distiller)}{skipped}'
        f'The teacher holds {parameters / 1e6:.2f} M parameters, {size:.1f} MiB, and '
        'no gradients or optimizer state.'
    )


def _table(distiller: Distiller) -> str:
    labeled, unlabeled = distiller.labeled, distiller.unlabeled
    columns = ['term', 'site', 'loss', 'weight', 'schedule', 'tensors']
    if unlabeled is not None:
        columns.append('without labels')
    table = Table(*columns, box=ASCII)
    for term in distiller.terms:
        row = [
            term.name,
            term.site.name,
            type(term.loss).__name__,
            f'{distiller.whole_weight(term):g}',
            str(term.schedule),
            ' '.join(labeled.shapes.get(term.name, [])) or '-',
        ]
        if unlabeled is not None:
            row.append(' '.join(unlabeled.comparison.shapes.get(term.name, [])) or '-')
        table.add_row(*row)
    # in a notebook, rich would show the table instead of returning it
    console = Console(
        width=110, file=io.StringIO(), force_terminal=False, force_jupyter=False
    )
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _unweighted(distiller: Distiller) -> str:
    if any(map(distiller.whole_weight, distiller.terms)):
        return ''
    return 'No term has a weight: nothing will be distilled.\n'


def _reused(distiller: Distiller) -> str:
    """Say what is run once, and where images without labels differ in it."""
    first, *others = [each.reuse.describe() for each in distiller.comparisons()]
    differing = [f'Without labels: {each}' for each in others if each and each != first]
    return ''.join(f'{line}\n' for line in [first, *differing] if line)


def _normed(distiller: Distiller) -> str:
    """Say where the teacher's batch norms do not use what they hold."""
    by_batch = distiller.teacher_norm == 'batch'
    if not (by_batch and has_batch_norms_that_train(distiller.student)):
        return ''
    return "The teacher's batch norms normalise by the batch, as the student's do.\n"


def _seen(distiller: Distiller) -> str:
    """Say what the student sees, where that is not what its teacher does."""
    unlabeled = distiller.unlabeled
    views = [('with labels', distiller.view)]
    views += [('without labels', unlabeled.view)] if unlabeled else []
    return ''.join(
        f'The student sees images {kind} through a view: {view}.\n'
        for kind, view in views
        if view is not None
    )
