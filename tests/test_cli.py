"""The console script finds its commands, and answers for people."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmselfdistill.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_without_arguments_every_command_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([])
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f'mmselfdistill {name}' in shown


@pytest.mark.parametrize('name', COMMANDS)
def test_the_example_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, example = COMMANDS[name]
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args(example.split())
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert end.value.code == 0
    shown = ' '.join(capsys.readouterr().out.split())
    assert f'Example: mmselfdistill {name} {example}' in shown


def test_what_is_wrong_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='no run has logged its training there'):
        main(['compare', str(tmp_path)])
    config = tmp_path / 'config.py'
    config.write_text('train_cfg = dict(max_epochs=1)\n')
    with pytest.raises(SystemExit, match='has no hook of mmselfdistill'):
        main(['control', str(config), '--cost', '1.5'])
    with pytest.raises(SystemExit, match='default_scope: expected one of'):
        main(['check', str(config)])
    with pytest.raises(SystemExit, match=r"^config: '\.' is a folder"):
        main(['check', '.'])
    scope = "default_scope = 'mmdet'\n"
    for text, message in (
        ('x = (', r'config\.py. cannot be read: SyntaxError: '),
        ("_base_ = 'gone.py'", r'config\.py. cannot be read: .*gone\.py'),
        (scope, 'model: expected a dict with its type, but got None'),
        (
            f"{scope}model = 'GFL'",
            "model: expected a dict with its type, but got 'GFL'",
        ),
        (f"{scope}model = dict(type='Gone')", 'it cannot be built: KeyError: .*Gone'),
        (f"{scope}model = dict(type='GFL', a=1)", 'it cannot be built: TypeError: '),
    ):
        config.write_text(text)
        with pytest.raises(SystemExit, match=message):
            main(['inspect', str(config)])
    ours = tmp_path / 'ours.py'
    hook = "dict(a=dict(type='mmselfdistill.EMATeacherHook'))"
    ours.write_text(f'default_hooks = {hook}\ntrain_cfg = dict(max_epochs=1)\n')
    inside = str(config / 'controls')
    with pytest.raises(SystemExit, match=r'Errno.*config\.py'):
        main(['control', str(ours), '--cost', '2', '--out-dir', inside])


def test_a_pipe_that_is_closed_is_no_error(tmp_path: Path) -> None:
    config = tmp_path / 'ours.py'
    hook = "dict(a=dict(type='mmselfdistill.EMATeacherHook'))"
    config.write_text(f'default_hooks = {hook}\ntrain_cfg = dict(max_epochs=2)\n')
    command = [sys.executable, '-u', '-W', 'ignore', '-m', 'mmselfdistill.cli']
    command += ['control', str(config), '--cost', '2']
    # nobody reads what is printed
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (tmp_path / 'ours_plain.py').is_file()
    assert (done.returncode, done.stderr) == (0, '')


SCALED = """
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from torch import nn, ones


@MODELS.register_module()
class ScaledRetinaNet(RetinaNet):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.scale = nn.Parameter(ones(1))

    def loss(self, inputs, samples):
        found = [self.scale * each for each in self.extract_feat(inputs)]
        return self.bbox_head.loss(found, samples)
"""


@pytest.fixture
def scaled(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config of a model whose scale is between two recorded calls."""
    (tmp_path / 'scaled_retinanet.py').write_text(SCALED)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / 'config.py'
    hook = "dict(type='mmselfdistill.EMATeacherHook', schedule='constant')"
    config.write_text(
        f'_base_ = {str(data / "mmdet.py")!r}\n'
        "custom_imports = dict(imports=['scaled_retinanet'])\n"
        "model = dict(type='ScaledRetinaNet')\n"
        f'default_hooks = dict(self_distill={hook})\n'
        f'work_dir = {str(tmp_path / "run")!r}\n'
    )
    return str(config)


@pytest.mark.parametrize('command', ['inspect', 'check', 'control'])
def test_a_model_that_needs_a_seam_is_one_message(command: str, scaled: str) -> None:
    with pytest.raises(SystemExit, match='named as a seam'):
        main([command, scaled])


def test_an_error_in_a_run_keeps_its_traceback(scaled: str) -> None:
    with pytest.raises(RuntimeError, match='named as a seam'):
        main(['train', scaled])


def test_a_good_run_is_silent_on_stderr(tmp_path: Path) -> None:
    log = tmp_path / 'one/1/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    entries = (dict(loss=1.0, epoch=1, step=1, time=1.0), dict(mIoU=30.0, step=1))
    log.write_text('\n'.join(map(json.dumps, entries)))
    config = str(ROOT / 'configs/digits/gfl_r18_fpn_50e_digits.py')
    commands = [
        ['inspect', config, '--size', '64'],
        ['check', config],
        ['compare', str(tmp_path / 'one'), '--picture', str(tmp_path / 'a.png')],
    ]
    code = f'from mmselfdistill.cli import main\nfor each in {commands}: main(each)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONWARNINGS': '', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for shown in ('Sites:', 'passed', 'Picture:'):
        assert shown in done.stdout
    assert done.stderr == ''


def test_other_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: argparse.Namespace) -> None:
        warnings.warn('pkg_resources is deprecated as an API. See', stacklevel=1)
        warnings.warn('something else is deprecated', stacklevel=1)

    command = SimpleNamespace(run=run, add_arguments=lambda parser: None)
    monkeypatch.setitem(COMMANDS, 'check', (command, 'warn', ''))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        main(['check'])
    assert [str(each.message) for each in shown] == ['something else is deprecated']


def test_controls_of_a_zoo_config_are_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'retinanet_r50_fpn_ema-1x_coco'
    main(['control', f'mmselfdistill::retinanet/{name}', '--cost', '1.5'])
    (path,) = tmp_path.iterdir()
    assert path.name == f'{name}_plain.py'
    # 12 epochs, half of them with a teacher
    assert Config.fromfile(path).train_cfg.max_epochs == 15


def test_extract_writes_the_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(hook='EMATeacherHook', teacher=dict(weight=torch.ones(2)))
    checkpoint = dict(state_dict=dict(weight=torch.zeros(2)), mmselfdistill=state)
    torch.save(checkpoint, tmp_path / 'run.pth')
    out = tmp_path / 'new/teacher.pth'
    main(['extract', str(tmp_path / 'run.pth'), str(out)])
    assert '1 tensors of the teacher' in capsys.readouterr().out
    assert torch.load(out)['state_dict']['weight'].tolist() == [1, 1]
