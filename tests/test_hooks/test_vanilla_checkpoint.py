"""The student's checkpoint is a stock one, where this package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

# arguments: configs without our hook, each with load_from
STOCK = """
import sys
sys.modules['mmselfdistill'] = None
import torch
from mmengine.config import Config
from mmengine.runner import Runner

for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    runner = Runner(**cfg)
    runner.load_or_resume()
    saved = torch.load(cfg.load_from, weights_only=False)['state_dict']
    model = runner.model.state_dict()
    assert list(saved) == list(model)
    assert all(torch.equal(saved[key], model[key]) for key in model)
    runner.model.load_state_dict(saved, strict=True)
    print('loaded', type(runner.model).__name__, len(model))

# and goes on where the distilled run was stopped
cfg.update(resume=True, experiment_name='resumed')
runner = Runner(**cfg)
runner.train()
print('resumed until', runner.iter)
"""


def test_stock_framework_loads_the_student(runs: Runs, tmp_path: Path) -> None:
    expected, paths = [], []
    for name in runs.models:
        hook = dict(type='mmselfdistill.EMATeacherHook', schedule='constant')
        taught = runs.config(name, hook, iters=1)
        runner = runs.train(taught)
        kind, size = type(runner.model).__name__, len(runner.model.state_dict())
        expected.append(f'loaded {kind} {size}')
        stock = runs.config(name, iters=3)
        stock.load_from = (Path(taught.work_dir) / 'last_checkpoint').read_text()
        stock.experiment_name = name
        paths.append(tmp_path / f'{name}.py')
        stock.dump(paths[-1])
    (tmp_path / 'stock.py').write_text(STOCK)
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        # MMEngine 0.10 cannot read its own checkpoints from PyTorch 2.6 on
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1',
    }
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', tmp_path / 'stock.py', *paths],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [line for line in done.stdout.splitlines() if line[:7] == 'loaded ']
    assert lines == expected
    assert 'resumed until 3' in done.stdout
