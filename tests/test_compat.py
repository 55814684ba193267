"""Versions, checkpoints that PyTorch would refuse, and configs by our name."""

from __future__ import annotations

import inspect
import os
import pickle
import sys
from pathlib import Path
from typing import Any, Callable

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.dataset import default_collate
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmselfdistill.compat import (
    allow_mmengine_checkpoints,
    check_versions,
    mmengine_checkpoints,
    name_our_configs,
)

CONFIGS = Path(__file__).parents[1] / 'configs'
strict_loading = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='this PyTorch has no list of allowed types',
)


@pytest.mark.parametrize(
    ('module', 'name', 'version', 'message'),
    [
        (torch, 'PyTorch', '1.13.1', 'PyTorch >= 2.1, but 1.13.1 is installed'),
        (mmengine, 'mmengine', '0.9.1', 'mmengine >= 0.10, but 0.9.1 is installed'),
    ],
)
def test_old_versions_are_refused_by_name(
    module: Any, name: str, version: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, '__version__', version)
    with pytest.raises(ImportError, match=f'^mmselfdistill needs {message}$'):
        check_versions()


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'version_info', (3, 7, 9, 'final', 0))
    with pytest.raises(ImportError, match=r'needs Python >= 3\.8, but 3\.7\.9 is'):
        check_versions()


def accepted() -> bool:
    try:
        check_versions()
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    ('version', 'expected'),
    [
        ('1.13.1', False),
        ('2.0.1', False),
        ('2.1.0rc1', False),
        ('2.1.0', True),
        ('2.1.2+cu118', True),
        ('2.13.0+cpu', True),
        ('3.0', True),
    ],
)
def test_the_oldest_and_newer_versions_pass(
    version: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, '__version__', version)
    monkeypatch.setattr(mmengine, '__version__', '0.10.0')
    monkeypatch.setattr(sys, 'version_info', (3, 8, 0, 'final', 0))
    assert accepted() is expected


class Linear(BaseModel):  # type: ignore[misc]
    """The smallest model that a Runner trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> dict[str, Tensor]:
        return dict(loss=self.linear(inputs).square().mean())


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MMEngine writes of a run: weights, optimizer, schedule and log."""
    work_dir = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    data = [dict(inputs=each) for each in torch.rand(4, 2)]
    Runner(
        model=Linear(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=default_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', milestones=[1]),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        experiment_name='compat',
    ).train()
    return work_dir / 'epoch_2.pth'


@strict_loading
def test_checkpoints_of_mmengine_load_strictly(checkpoint: Path) -> None:
    # by MMEngine's own loader, which looks up the methods of its log
    loaded = _load_checkpoint(str(checkpoint), map_location='cpu')
    trusted = torch.load(checkpoint, weights_only=False)
    assert loaded['meta']['iter'] == 4
    assert torch.equal(
        loaded['state_dict']['linear.weight'], trusted['state_dict']['linear.weight']
    )
    log = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(log, HistoryBuffer)
    history, counts = log.data
    expected, _ = trusted['message_hub']['log_scalars']['train/loss'].data
    assert history.tolist() == expected.tolist()
    assert counts.tolist() == [1] * 4
    assert history[-1] < history[0]
    # its methods are there as well, each the one of its own name
    values = history.tolist()
    assert log.current() == values[-1]
    assert log.min() == min(values)
    assert log.max() == max(values)
    assert log.mean() == pytest.approx(sum(values) / 4)
    named = log._statistics_methods
    assert {name: named[name] for name in ('min', 'max', 'mean', 'current')} == dict(
        min=HistoryBuffer.min,
        max=HistoryBuffer.max,
        mean=HistoryBuffer.mean,
        current=HistoryBuffer.current,
    )


@strict_loading
def test_getattr_is_looked_up_only_while_a_checkpoint_is_loaded(
    checkpoint: Path,
) -> None:
    _load_checkpoint(str(checkpoint), map_location='cpu')
    allowed = torch.serialization.get_safe_globals()
    assert 'builtins.getattr' not in [x[1] for x in allowed if isinstance(x, tuple)]
    with pytest.raises(pickle.UnpicklingError, match='GLOBAL getattr'):
        torch.load(checkpoint, weights_only=True)
    with mmengine_checkpoints():
        assert torch.load(checkpoint, weights_only=True)['meta']['iter'] == 4


@strict_loading
def test_every_loader_of_mmengine_is_guarded_once() -> None:
    allow_mmengine_checkpoints()
    loaders = CheckpointLoader._schemes
    assert len(loaders) > 8
    for prefix, load in loaders.items():
        # not again at the second call
        stock = load.__wrapped__
        assert stock is inspect.unwrap(load), prefix
        assert stock.__module__ == 'mmengine.runner.checkpoint'
        assert load.__name__.startswith('load_from_')


@strict_loading
def test_a_loader_inside_leaves_the_guard_to_the_block_around(
    checkpoint: Path,
) -> None:
    with mmengine_checkpoints():
        _load_checkpoint(str(checkpoint), map_location='cpu')
        assert torch.load(checkpoint, weights_only=True)['meta']['iter'] == 4
    with pytest.raises(pickle.UnpicklingError, match='GLOBAL getattr'):
        torch.load(checkpoint, weights_only=True)


@strict_loading
def test_the_old_name_of_numpys_core_is_not_needed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(np, '_core'):
        monkeypatch.delattr(np, 'core', raising=False)
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        allow_mmengine_checkpoints()
        with mmengine_checkpoints():
            assert torch.load(checkpoint, weights_only=True)['meta']['iter'] == 4
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


class Forged:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def load_forged(path: Path, value: Any) -> Any:
    torch.save(dict(state_dict=value), path)
    with mmengine_checkpoints():
        return torch.load(path, weights_only=True)


@strict_loading
def test_a_checkpoint_cannot_run_a_command(tmp_path: Path) -> None:
    proof = tmp_path / 'proof'
    attack = Forged(os.system, f'touch {proof}')
    with pytest.raises(pickle.UnpicklingError, match=rf'GLOBAL {os.name}\.system'):
        load_forged(tmp_path / 'forged.pth', attack)
    assert not proof.exists()
    # the attack is a real one: without the check it does as it likes
    torch.load(tmp_path / 'forged.pth', weights_only=False)
    assert proof.exists()


@strict_loading
@pytest.mark.parametrize('kind', [HistoryBuffer, OneCycleParamScheduler])
@pytest.mark.parametrize('name', ['__init__', '__globals__', 'statistics', 'data'])
def test_getattr_looks_up_the_methods_that_are_written_alone(
    kind: type, name: str, tmp_path: Path
) -> None:
    attack = Forged(getattr, kind, name)
    message = f"asks for '{name}' of .*{kind.__name__}.*: only the statistics of"
    with pytest.raises((pickle.UnpicklingError, AttributeError), match=message):
        load_forged(tmp_path / 'forged.pth', attack)


@strict_loading
def test_getattr_climbs_to_nothing_else(tmp_path: Path) -> None:
    """A method's globals hold modules, of which one is os."""
    proof = tmp_path / 'proof'
    method = Forged(getattr, HistoryBuffer, 'mean')
    with pytest.raises((pickle.UnpicklingError, AttributeError), match='__globals__'):
        load_forged(tmp_path / 'forged.pth', Forged(getattr, method, '__globals__'))
    with pytest.raises((pickle.UnpicklingError, AttributeError), match='GLOBAL eval'):
        load_forged(tmp_path / 'forged.pth', Forged(eval, f'open({str(proof)!r}, "w")'))
    with pytest.raises((pickle.UnpicklingError, AttributeError), match="'mean' of"):
        load_forged(tmp_path / 'forged.pth', Forged(getattr, Tensor, 'mean'))
    assert not proof.exists()
    found = load_forged(tmp_path / 'forged.pth', method)['state_dict']
    assert found is HistoryBuffer.mean


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs where an installed package has them: below its .mim."""
    package = tmp_path / 'installed_package'
    (package / '.mim').mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / '.mim' / 'configs').symlink_to(CONFIGS)
    index = CONFIGS.parent / 'model-index.yml'
    (package / '.mim' / 'model-index.yml').symlink_to(index)
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = config_utils.MODULE2PACKAGE
    monkeypatch.setitem(packages, 'mmselfdistill', 'installed_package')


def scopes_in(cfg: Any) -> set[str]:
    values = cfg.values() if isinstance(cfg, dict) else cfg
    found = {cfg['_scope_']} if isinstance(cfg, dict) and '_scope_' in cfg else set()
    for value in values:
        if isinstance(value, (dict, list, tuple)):
            found |= scopes_in(value)
    return found


@pytest.mark.parametrize(
    'name', ['digits/gfl_r18_fpn_50e_digits.py', 'gfl/gfl_r50_fpn_ema-1x_coco.py']
)
def test_our_configs_are_a_base_by_our_name(
    installed: None, tmp_path: Path, name: str
) -> None:
    derived = tmp_path / 'derived.py'
    derived.write_text(f"_base_ = 'mmselfdistill::{name}'\nextra = 1\n")
    cfg = Config.fromfile(derived).to_dict()
    assert cfg.pop('extra') == 1
    direct = Config.fromfile(CONFIGS / name).to_dict()
    assert cfg == direct
    # classes are looked up where the frameworks have them
    assert 'mmselfdistill' not in scopes_in(cfg)


def test_other_packages_keep_their_scope(tmp_path: Path) -> None:
    derived = tmp_path / 'derived.py'
    derived.write_text("_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'\n")
    cfg = Config.fromfile(derived).to_dict()
    assert scopes_in(cfg) == {'mmdet'}


def test_naming_our_configs_again_changes_nothing() -> None:
    before = Config._get_cfg_path, dict(config_utils.MODULE2PACKAGE)
    name_our_configs()
    assert (Config._get_cfg_path, config_utils.MODULE2PACKAGE) == before
