"""Taking the teacher out of a checkpoint, without a Runner.

`tests/test_tools/test_train.py` does it with a checkpoint that a run has written.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub

from mmselfdistill.commands import extract


def checkpoint(teacher: Any) -> dict[str, Any]:
    # MMEngine's checkpoints hold histories, which PyTorch refuses by default.
    hub = MessageHub('extract-teacher')
    hub.update_scalar('train/loss', 1.0)
    state = dict(version=1, hook='GenerationHook', teacher=teacher, generation=0)
    return dict(
        meta=dict(epoch=3),
        state_dict=dict(weight=torch.zeros(2)),
        message_hub=hub.state_dict(),
        mmselfdistill=state,
    )


def test_writes_teacher_and_meta_only(tmp_path: Path) -> None:
    path = tmp_path / 'run.pth'
    torch.save(checkpoint(dict(weight=torch.tensor([1.0, 2.0]))), path)
    found = extract.read_teacher(path)
    assert found.keys() == {'meta', 'state_dict'}
    assert found['meta'] == dict(epoch=3)
    assert found['state_dict'].keys() == {'weight'}
    assert torch.equal(found['state_dict']['weight'], torch.tensor([1.0, 2.0]))


def test_it_writes_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / 'epoch_2.pth'
    path.write_bytes(b'the only one')
    for out in (path, tmp_path):
        with pytest.raises(SystemExit, match='name a new file'):
            extract.run(argparse.Namespace(checkpoint=path, out=out))
    assert path.read_bytes() == b'the only one'
    # another run's checkpoint: two of them are what `*.pth` gives
    run = tmp_path / 'epoch_1.pth'
    torch.save(checkpoint(dict(weight=torch.ones(2))), run)
    with pytest.raises(SystemExit, match=r'epoch_2\.pth.* exists: name a new file'):
        extract.run(argparse.Namespace(checkpoint=run, out=path))
    assert path.read_bytes() == b'the only one'
    new = tmp_path / 'folder/teacher.pth'
    extract.run(argparse.Namespace(checkpoint=run, out=new))
    assert [each.name for each in new.parent.iterdir()] == ['teacher.pth']
    assert torch.equal(torch.load(new)['state_dict']['weight'], torch.ones(2))


def test_nothing_is_left_of_what_a_full_disk_does_not_take(tmp_path: Path) -> None:
    run, new = tmp_path / 'epoch_1.pth', tmp_path / 'folder/teacher.pth'
    torch.save(checkpoint(dict(weight=torch.ones(10_000))), run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(SystemExit, match=r'^OUT: .*pth. cannot be written'):
            extract.run(argparse.Namespace(checkpoint=run, out=new))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*new.parent.iterdir()]


def test_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / 'run.pth'
    with pytest.raises(SystemExit, match=r'run\.pth.*does not exist'):
        extract.read_teacher(path)
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(SystemExit, match=r"read: torch\.save did not .* b'not a ch'"):
        extract.read_teacher(path)
    torch.save(dict(state_dict={}), path)
    with pytest.raises(SystemExit, match='without self-distillation'):
        extract.read_teacher(path)
    torch.save(dict(state_dict={}, mmselfdistill={}), path)
    with pytest.raises(SystemExit, match='or not what a hook saves there'):
        extract.read_teacher(path)
    torch.save(checkpoint(None), path)
    with pytest.raises(SystemExit, match=r'no teacher.*first generation'):
        extract.read_teacher(path)
