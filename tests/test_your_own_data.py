"""Every command of docs/your_own_data.md runs, on a few scenes of digits."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_installed_path
from mmseg.visualization import SegLocalVisualizer

from mmselfdistill import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/your_own_data.md').read_text()
FILES = dict(
    re.findall(r'^```python\n# (\w+)\.py\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)
)
# a stock tool for MMDetection's folder
FOLDERS = {
    f'${name.upper()}': str(Path(get_installed_path(MODULE2PACKAGE[name])) / '.mim')
    for name in ('mmdet', 'mmseg')
}
# the page's config with a model, images and a run that a test has the time for
SMALL = dict(
    mine="""
_base_ = 'shown_mine.py'
model = dict(
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0))
size = dict(type='Resize', scale=(64, 64), keep_ratio=True)
train = [size if each['type'] == 'Resize' else each for each in _base_.train_pipeline]
test = [size if each['type'] == 'Resize' else each for each in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train))
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=12)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=12))
""",
    mine_seg="""
_base_ = 'shown_mine_seg.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(depth=18, stem_channels=8, base_channels=8),
    decode_head=dict(in_channels=64, channels=16, dilations=(1, 2, 3, 4),
                     c1_in_channels=8, c1_channels=8),
    auxiliary_head=dict(in_channels=32, channels=8))
size = dict(type='Resize', scale=(64, 64))
train = [size if 'Resize' in each['type'] else each for each in _base_.train_pipeline]
test = [size if each['type'] == 'Resize' else each for each in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
""",
)


def part(heading: str) -> str:
    return PAGE.split(f'\n## {heading}\n')[1].split('\n## ')[0]


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r'^```bash\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    lines = ''.join(blocks).splitlines()
    return [shlex.split(line) for line in lines]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as a shell would, in this process: imports take seconds.

    A test gets a process: PyTorch refuses MMEngine's checkpoints where nothing has
    imported this package.
    """
    for name, folder in FOLDERS.items():
        words = [word.replace(name, folder) for word in words]
    program, *arguments = words
    if program == 'mmselfdistill':
        cli.main(arguments)
    else:
        assert program == 'python'
        if arguments[0].endswith('test.py'):
            subprocess.run([sys.executable, *arguments], check=True)
            return
        monkeypatch.setattr(sys, 'argv', arguments)
        # it is one for a process, and writes to the folder of the first run
        for each in (DetLocalVisualizer, SegLocalVisualizer):
            each._instance_dict.clear()
        runpy.run_path(arguments[0], run_name='__main__')


def write_boxes(digits: Path, root: Path, split: str) -> None:
    shutil.copytree(digits / f'{split}2017', root / split)
    file = digits / 'annotations' / f'instances_{split}2017.json'
    coco = json.loads(file.read_text())
    coco['categories'] = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    for each in coco['annotations']:
        each['category_id'] = each['category_id'] % 2 + 1
    (root / f'{split}.json').write_text(json.dumps(coco))


def write_masks(digits: Path, root: Path, split: str) -> None:
    name = dict(train='training', val='validation')[split]
    shutil.copytree(digits / 'images' / name, root / 'images' / split)
    (root / 'masks' / split).mkdir(parents=True)
    # the rim of a stroke is not counted; then the background; then the digits
    table = np.array([255, 0, *[1, 2] * 5], dtype=np.uint8)
    for path in (digits / 'annotations' / name).iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(root / 'masks' / split / path.name), table[labels])


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page's files and data as the page lays them out."""
    folder = tmp_path_factory.mktemp('own')
    for name, text in FILES.items():
        small = SMALL.get(name)
        (folder / f'{"shown_" if small else ""}{name}.py').write_text(text)
        if small:
            (folder / f'{name}.py').write_text(small)
    tool = ROOT / 'tools/dataset_converters/digits.py'
    digits = folder / 'digits'
    arguments = ['--train', '4', '--val', '4', '--size', '64']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(tool), str(digits), *arguments])
        runpy.run_path(str(tool), run_name='__main__')
    for split in ('train', 'val'):
        (folder / 'data/mine').mkdir(parents=True, exist_ok=True)
        write_boxes(digits, folder / 'data/mine', split)
        write_masks(digits, folder / 'data/mine_seg', split)
    return folder


def metrics(work_dir: Path) -> dict[str, Any]:
    """Return the metrics of the last validation of a run."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return dict([each for each in entries if 'loss' not in each][-1])


def table(text: str) -> list[list[str]]:
    """Return term, site, loss, weight and schedule of each row."""
    rows = [x.strip('|').split('|') for x in text.splitlines() if x.startswith('| ')]
    cells = [[cell.strip() for cell in row[:5]] for row in rows]
    return [row for row in cells if row[0]]


def measured(printed: str, key: str) -> list[float]:
    """Return what the commands have printed of a metric, in their order."""
    found = re.findall(rf'(?<!/){re.escape(key)}: +(-?[\d.]+)', printed)
    return [float(value) for value in found]


def test_detection(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    inspect, *others = commands(part('Detection'))
    run(inspect, monkeypatch)
    shown = re.search(r'```text\n(Self-dist.*?)```', PAGE, re.DOTALL)
    assert shown is not None
    assert table(capfd.readouterr().out) == table(shown[1])
    for words in others:
        run(words, monkeypatch)
    printed = capfd.readouterr().out
    assert 'teacher/coco/bbox_mAP' not in metrics(folder / 'work_dirs/plain')
    student = metrics(folder / 'work_dirs/taught')['coco/bbox_mAP']
    teacher = metrics(folder / 'work_dirs/taught')['teacher/coco/bbox_mAP']
    assert measured(printed, 'coco/bbox_mAP')[-2:] == [student, teacher]


def test_segmentation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for words in commands(part('Segmentation')):
        words = [word.replace('iter_20000', 'iter_2') for word in words]
        run(words, monkeypatch)
    found = metrics(folder / 'work_dirs/seg_taught')
    assert measured(capfd.readouterr().out, 'mIoU')[-1] == pytest.approx(
        found['teacher/mIoU'], abs=0.01
    )
    state = torch.load(folder / 'seg_teacher.pth', weights_only=False)['state_dict']
    assert state['decode_head.conv_seg.weight'].shape == (3, 16, 1, 1)
