"""An iteration makes no operation of ours that would wait for a device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.benchmarks.iterations import Iterations
from tools.benchmarks.subjects import make_subject
from tools.benchmarks.syncs import (
    ITERATIONS,
    PACKAGE,
    WouldWait,
    compared,
)

ROOT = Path(__file__).parents[2]

ROI_EXTRACTOR = 'single_level_roi_extractor.py'


def waits_of(iterations: Iterations, kind: str) -> Counter[tuple[str, str]]:
    """Count what would wait in the second iteration: the first one checks."""
    iterations.run(kind)
    subject, batch = iterations.subject, iterations.subject.copied_batch()
    with iterations.attached(kind), WouldWait() as found:
        subject.wrapper.update_params(subject.loss(batch))
    return found.counts


@pytest.mark.parametrize(
    ('config', 'repeated'),
    [
        ('retinanet_r18_fpn_50e_digits', {}),
        # which RoIs are of a level, of three levels: of the boxes and of the masks
        ('mask-rcnn_r18_fpn_50e_digits', {(ROI_EXTRACTOR, 'aten.nonzero'): 6}),
        ('deeplabv3plus_r18-d8_1xb8-1500_digits-64x64', {}),
    ],
)
def test_nothing_of_ours_would_wait_in_a_later_iteration(
    config: str, repeated: dict[tuple[str, str], int]
) -> None:
    subject = make_subject(str(ROOT / f'configs/digits/{config}.py'), 64, 2)
    iterations = Iterations(subject, ('stock', 'ours'))
    stock, ours = (waits_of(iterations, kind) for kind in ('stock', 'ours'))
    assert [key for key in ours if key[0].startswith(PACKAGE)] == []
    more: Counter[tuple[str, str]] = Counter()
    for (where, operation), count in (ours - stock).items():
        more[Path(where.rpartition(':')[0]).name, operation] += count
    assert more == repeated


def test_what_would_wait_is_found_at_its_line() -> None:
    # as if it were in the package
    code = 'def planted(x, i):\n  y = x[x > 0]\n  x[i].sum()\n  return y.sum().item()\n'
    scope: dict[str, Any] = {}
    exec(compile(code, f'{PACKAGE}/planted.py', 'exec'), scope)
    with WouldWait() as found:
        scope['planted'](torch.arange(3.0), torch.tensor([1, 2]))
    assert found.counts == {
        (f'{PACKAGE}/planted.py:2', 'aten.index'): 1,
        (f'{PACKAGE}/planted.py:4', 'aten._local_scalar_dense'): 1,
    }


def test_waits_of_the_frameworks_count_only_where_there_are_more() -> None:
    mine, theirs = f'{PACKAGE}/losses/a.py:1', '/frameworks/head.py:2'
    stock = Counter({theirs: 2 * ITERATIONS})
    ours = Counter({theirs: 3 * ITERATIONS, mine: ITERATIONS})
    assert compared(stock, ours) == dict(
        stock=2.0, ours=4.0, of_ours={mine: 1.0}, repeated={theirs: 1.0}
    )
