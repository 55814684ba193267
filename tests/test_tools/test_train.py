"""The stock launchers and ours, as a user runs them, on data sets of a few images."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import init_default_scope
from mmengine.utils import get_installed_path

from mmselfdistill.compat import load_checkpoint

TOOLS = Path(__file__).parents[2] / 'tools'
STOCK = {
    zoo: Path(get_installed_path(MODULE2PACKAGE[zoo]), '.mim', 'tools', 'train.py')
    for zoo in ('mmdet', 'mmseg')
}


def run(*command: object, **environment: str) -> str:
    """Run a tool and return what it printed; a failure shows that too."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [str(part) for part in command],
        env={**env, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Return what the Runner logged, an entry an iteration."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]


def distilled(entry: dict[str, Any]) -> float:
    """Return the sum of all terms of an entry; fails if there is none."""
    terms = [value for key, value in entry.items() if key.startswith('loss_sd_')]
    assert terms
    return sum(terms)


def build_stock(config: Path) -> torch.nn.Module:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    return MODELS.build(cfg.model)


def load_strictly(config: Path, checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = load_checkpoint(checkpoint)
    build_stock(config).load_state_dict(loaded['state_dict'], strict=True)
    return loaded


@pytest.mark.parametrize('framework', ['mmdet', 'mmseg'])
def test_stock_tool_with_one_flag(framework: str, data: Path, tmp_path: Path) -> None:
    config = data / f'{framework}.py'
    flag = 'default_hooks.self_distill.type=mmselfdistill.EMATeacherHook'
    run(
        *(sys.executable, STOCK[framework], config),
        *('--work-dir', tmp_path, '--cfg-options', flag),
    )
    entries = scalars(tmp_path)
    assert len(entries) == 8
    # An EMA teacher keeps silent in the first half of the run.
    assert distilled(entries[0]) == 0
    assert distilled(entries[-1]) > 0
    last = tmp_path / (tmp_path / 'last_checkpoint').read_text()
    state = load_strictly(config, last)['mmselfdistill']
    assert state['hook'] == 'EMATeacherHook' and state['updates'] == 8


@pytest.fixture(scope='module')
def generations(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of two generations of four epochs with our tool."""
    work_dir = tmp_path_factory.mktemp('generations')
    run(
        *(sys.executable, TOOLS / 'train.py', data / 'mmdet'),
        *('--self-distill', 'generation', '--work-dir', work_dir),
        *('--cfg-options', 'default_hooks.self_distill.loss_weight=2'),
    )
    return work_dir


def test_generations_with_our_tool(data: Path, generations: Path) -> None:
    entries = scalars(generations)
    assert len(entries) == 2 * 4 * 2
    assert all(distilled(entry) == 0 for entry in entries[:8])
    assert distilled(entries[-1]) > 0
    epochs = {f'epoch_{n}.pth' for n in (2, 4, 6, 8)}
    assert {path.name for path in generations.glob('*.pth')} == epochs
    first = load_strictly(data / 'mmdet.py', generations / 'epoch_4.pth')
    second = load_strictly(data / 'mmdet.py', generations / 'epoch_8.pth')
    assert first['mmselfdistill']['teacher'] is None
    # The teacher of the second generation is the student that ended the first.
    teacher = second['mmselfdistill']['teacher']
    assert teacher.keys() == first['state_dict'].keys()
    for key, tensor in first['state_dict'].items():
        assert torch.equal(teacher[key], tensor), key


def test_extracted_teacher_is_stock_and_teaches(
    data: Path, generations: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / 'teacher.pth'
    run(
        *(sys.executable, '-m', 'mmselfdistill.cli', 'extract'),
        *(generations / 'epoch_8.pth', teacher),
    )
    load_strictly(data / 'mmdet.py', teacher)
    printed = run(
        *(sys.executable, TOOLS / 'test.py', data / 'mmdet.py', teacher),
        *('--work-dir', tmp_path / 'test', '--out', tmp_path / 'predictions.pkl'),
    )
    assert 'coco/bbox_mAP' in printed
    assert (tmp_path / 'predictions.pkl').is_file()
    work_dir = tmp_path / 'train'
    run(
        *(sys.executable, TOOLS / 'train.py', data / 'mmdet.py'),
        *('--self-distill', teacher, '--work-dir', work_dir),
    )
    # A fixed teacher teaches from the first iteration.
    assert distilled(scalars(work_dir)[0]) > 0


def test_two_processes_on_the_cpu(data: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    run(
        *('bash', TOOLS / 'dist_train.sh', data / 'mmseg.py', 2),
        *('--self-distill', 'generation', '--interval', 4, '--work-dir', tmp_path),
        BACKEND='gloo',
        PORT=port,
        PYTHON=sys.executable,
    )
    entries = scalars(tmp_path)
    assert len(entries) == 8
    assert all(distilled(entry) == 0 for entry in entries[:4])
    assert distilled(entries[-1]) > 0
    load_strictly(data / 'mmseg.py', tmp_path / 'iter_8.pth')
