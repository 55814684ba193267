"""A classifier of MMPretrain trains on digits from the shipped configs.

MMPretrain imports torchvision, which is not on every machine that has PyTorch. Both
are put in a folder that only the processes of these tests see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'digits_imagenet'
REQUIREMENTS = ROOT / 'tests' / 'requirements_mmpretrain.txt'
IDENTITY = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import mmpretrain.models
from mmpretrain.structures import DataSample
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.families.plan import Call, Side
init_default_scope('mmpretrain')
torch.manual_seed(0)
cfg = Config.fromfile(sys.argv[1]).model
if sys.argv[2] == 'several labels':
    cfg.head = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=64)
model = MODELS.build(cfg)
torch.nn.init.normal_(model.head.fc.weight)
distiller = build_distiller(model)
distiller.teacher = make_teacher(model)
still(model)
distiller.attach()
scores = torch.eye(10)[[3, 5]]
samples = [DataSample().set_gt_label([3]).set_gt_score(score) for score in scores]
batch = dict(inputs=torch.randn(2, 3, 32, 32), data_samples=samples, mode='loss')
equal = model(**batch)
with torch.no_grad():
    for parameter in distiller.teacher.parameters():
        parameter += 0.03 * torch.randn_like(parameter)
apart = model(**batch)
teacher = distiller.teacher(batch['inputs']).double()
student = model(batch['inputs']).double()
if sys.argv[2] == 'several labels':
    p, q = teacher.sigmoid(), student.sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    kl = kl.sum() / p.amax(1).sum().clamp(min=1)
else:
    p, q = teacher.softmax(1), student.softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
print([float(equal[f'loss_sd_{name}']) for name in ('features', 'logits')])
print(distiller.labeled.shapes)
(site,) = (site for site in distiller.labeled.plan.sites if site.name == 'logits')
side = Side(model, [Call(site.seams[0], 0, (), {}, output=scores)], [])
(reading,), (rows,) = site.read(side), site.weigh(side)
print(abs(float(apart['loss_sd_logits'] / kl) - 1) < 1e-3, float(kl) > 1e-4)
print(reading.kind, rows.norm is None)
"""
KINDS = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import mmpretrain.models
from mmselfdistill.families import find_plan
from mmselfdistill.families.plan import Call, Side
init_default_scope('mmpretrain')
cfg = Config.fromfile(sys.argv[1]).model
sizes = dict(num_classes=10, in_channels=64)
smoothed = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
sigmoid = dict(use_sigmoid=True)
for head in (
    dict(type='MultiLabelLinearClsHead', loss=dict(type='FocalLoss')),
    dict(type='LinearClsHead', loss=dict(smoothed, mode='multi_label', **sigmoid)),
    dict(type='LinearClsHead', loss=dict(smoothed, mode='original')),
    dict(type='LinearClsHead', loss=dict(type='FocalLoss')),
):
    cfg.head = dict(head, **sizes)
    model = MODELS.build(cfg)
    site = find_plan(model).site('logits')
    side = Side(model, [Call(site.seams[0], 0, (), {}, output=torch.eye(10))], [])

    def say():
        (reading,), (rows,) = site.read(side), site.weigh(side)
        print(reading.kind, rows.norm is None)

    say()
# as MMPretrain's SwitchRecipeHook does
model.head.loss_module = MODELS.build(dict(type='CrossEntropyLoss', **sigmoid))
say()
"""

MARGIN = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import mmpretrain.models
from mmpretrain.structures import DataSample
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher, still
init_default_scope('mmpretrain')
torch.manual_seed(0)
cfg = Config.fromfile(sys.argv[1]).model
cfg.head = dict(type='ArcFaceClsHead', num_classes=10, in_channels=64)
model = MODELS.build(cfg)
distiller = build_distiller(model)
distiller.teacher = make_teacher(model)
still(model)
distiller.attach()
with torch.no_grad():
    for parameter in distiller.teacher.parameters():
        parameter += 0.03 * torch.randn_like(parameter)
inputs, found = torch.randn(2, 3, 32, 32), []
for labels in ((3, 5), (5, 3)):
    samples = [DataSample().set_gt_label([label]) for label in labels]
    losses = model(inputs=inputs, data_samples=samples, mode='loss')
    found.append((float(losses['loss']), float(losses['sd_logits'])))
p, q = (m(inputs).softmax(1).double() for m in (distiller.teacher, model))
kl = (p * (p / q).log()).sum(1).mean()
print(found[0][0] != found[1][0], found[0][1] == found[1][1])
print(abs(float(found[0][1] / kl) - 1) < 1e-3, float(kl) > 1e-3)
"""


@pytest.fixture(scope='module')
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if sys.version_info >= (3, 12):
        pytest.skip('that torchvision has no build for Python 3.12')
    folder = tmp_path_factory.mktemp('mmpretrain')
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps']
    subprocess.run([*pip, '--target', folder, '-r', REQUIREMENTS], check=True)
    paths = [str(folder), str(ROOT)]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'OMP_NUM_THREADS': '1'}


def python(environment: dict[str, str], cwd: Path, *arguments: Any) -> str:
    command = [sys.executable, '-W', 'ignore', *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('labels', ['one label', 'several labels'])
def test_logits_are_compared_as_the_head_is_trained(
    environment: dict[str, str], tmp_path: Path, labels: str
) -> None:
    config = CONFIGS / 'resnet18_1xb64-20e_digits-32x32.py'
    printed = python(environment, tmp_path, '-c', IDENTITY, config, labels)
    equal, shapes, logits, kind = printed.splitlines()[-4:]
    assert equal == '[0.0, 0.0]'
    assert shapes == "{'features': ['2x64'], 'logits': ['2x10']}"
    assert logits == 'True True'
    # where an image has several labels, the teacher's positives are counted
    assert kind == ('softmax True' if labels == 'one label' else 'sigmoid False')


def test_a_margin_of_the_label_is_no_belief_of_the_teacher(
    environment: dict[str, str], tmp_path: Path
) -> None:
    config = CONFIGS / 'resnet18_1xb64-20e_digits-32x32.py'
    printed = python(environment, tmp_path, '-c', MARGIN, config)
    # the task's loss depends on the labels; the teacher's is that of inference
    assert printed.splitlines()[-2:] == ['True True', 'True True']


def test_sigmoids_of_a_head_are_known_by_its_loss_or_its_threshold(
    environment: dict[str, str], tmp_path: Path
) -> None:
    config = CONFIGS / 'resnet18_1xb64-20e_digits-32x32.py'
    printed = python(environment, tmp_path, '-c', KINDS, config)
    kinds = printed.splitlines()[-5:]
    several = 'sigmoid False'
    assert kinds == [several, several, 'softmax True', several, several]


def test_trains_from_the_shipped_config(
    environment: dict[str, str], tmp_path: Path
) -> None:
    tools = ROOT / 'tools'
    write = 'tools.dataset_converters.digits_imagenet'
    data = tmp_path / 'data' / 'digits_imagenet'
    python(environment, ROOT, '-m', write, data, '--train', 96, '--val', 100)
    assert len([*data.glob('train/*/*.png')]) == 96
    assert len([*data.glob('val/*/*.png')]) == 100
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    options += ['param_scheduler=None', 'train_dataloader.batch_size=32']
    config = CONFIGS / 'resnet18_1xb64-generation-2x20e_digits-32x32.py'
    python(environment, tmp_path, tools / 'train.py', config, '--cfg-options', *options)
    (log,) = tmp_path.glob('work_dirs/*/*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line]
    assert len(scores) == 2
    checkpoint = tmp_path / 'work_dirs' / config.stem / 'epoch_2.pth'
    assert checkpoint.is_file()
