"""The console script finds its commands, and answers for people."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmselfdistill.cli import COMMANDS, main


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
