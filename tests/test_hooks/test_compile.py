"""MMEngine's ``compile``: the step of a run is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from mmengine.utils import digit_version

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

COMPILED = dict(backend='eager')
EMA = dict(type='mmselfdistill.EMATeacherHook', momentum=0.5, schedule='constant')


def trained(runs: Runs, compiled: Any) -> tuple[dict[str, list[float]], int]:
    """Return the losses of a run, and how often the terms were computed."""
    runner: Any = runs.build(runs.config('retinanet', EMA, iters=2))
    runner.cfg.compile = compiled
    runner.train()
    scalars = runner.message_hub.log_scalars
    losses = {
        key: [*map(float, scalars[key].data[0])] for key in scalars if 'loss' in key
    }
    return losses, runs.hook(runner).distiller.computed


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='this PyTorch does not compile the preprocessor of MMEngine',
)
def test_a_compiled_run_is_the_same_run(runs: Runs) -> None:
    (plain, computed), (losses, other) = trained(runs, None), trained(runs, COMPILED)
    assert computed == other == 2
    assert {'train/loss_cls', 'train/loss_sd_features'} <= plain.keys() == losses.keys()
    # the optimizer is compiled too, and adds in another order
    for name, values in plain.items():
        assert losses[name] == pytest.approx(values, rel=1e-4), name
