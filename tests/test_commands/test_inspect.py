"""Inspecting a config shows what a run of it would distil, and what it costs."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import nn

from mmselfdistill.cli import main
from mmselfdistill.commands.inspect import in_ratio, operations

ROOT = Path(__file__).parents[2]
RETINANET = str(ROOT / 'configs/digits/retinanet_r18_fpn_50e_digits.py')
Inspect = Callable[..., str]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """The command in this process; it returns what is shown."""

    def run(*arguments: str) -> str:
        main(['inspect', *arguments])
        return capsys.readouterr().out

    return run


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the table by its term."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if '| ' not in line:
            continue
        term, *cells = [cell.strip() for cell in line.strip('|').split('|')]
        if term:
            found[term] = cells
        else:  # a row goes on
            last = [*found][-1]
            pairs = zip(found[last], cells)
            found[last] = [f'{one} {more}'.strip() for one, more in pairs]
    return found


def test_shows_the_defaults_of_a_config_that_knows_nothing_of_us() -> None:
    cli = [sys.executable, '-W', 'ignore', '-m', 'mmselfdistill.cli']
    command = [*cli, 'inspect', RETINANET, '--size', '64']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('The config has no hook: these are the defaults.')
    table = rows(done.stdout)
    # 4 anchors at strides 4, 8 and 16, of two images of 64 pixels
    anchors = 2 * 4 * (16**2 + 8**2 + 4**2)
    time = 'constant, begin=0.5, warmup=0.2'
    assert table['logits'] == ['logits', 'SoftTargetLoss', '1', time, f'{anchors}x10']
    assert table['boxes'][-1] == f'{anchors}x4'
    assert 'needs it: extract_feat, bbox_head.forward.' in done.stdout
    # a forward and about two backward passes, and the teacher's forward
    share = re.search(r'distillation is (\d+)% .* \((\d\.\d\d) of stock\)', done.stdout)
    assert share is not None
    assert 20 <= int(share[1]) <= 30 and 1.25 <= float(share[2]) <= 1.43


def test_a_teacher_that_rests_costs_a_share(inspect: Inspect) -> None:
    def cost(every: int) -> float:
        hook = 'default_hooks.self_distill'
        options = [f'{hook}.type=mmselfdistill.EMATeacherHook', f'{hook}.every={every}']
        shown = inspect(RETINANET, '--size', '64', '--cfg-options', *options)
        found = re.search(r'\((\d\.\d\d) of stock\)', shown)
        assert found is not None
        return float(found[1]) - 1

    # to the two digits that are shown
    assert cost(4) == pytest.approx(cost(1) / 4, abs=0.01)


def test_the_cost_is_that_of_all_terms_whatever_their_schedules(
    inspect: Inspect,
) -> None:
    def share(*schedule: str) -> str:
        hook = 'default_hooks.self_distill'
        options = [f'{hook}.type=mmselfdistill.EMATeacherHook', *schedule]
        shown = inspect(RETINANET, '--size', '64', '--cfg-options', *options)
        found = re.search(r'Self-distillation is .*', shown)
        assert found is not None
        return found[0]

    late = 'default_hooks.self_distill.schedule.begin=0.9'
    assert share(late) == share()
    assert '0%' not in share(late).split()


def test_shows_the_hook_of_a_config(inspect: Inspect) -> None:
    options = [
        'default_hooks.self_distill.type=mmselfdistill.EMATeacherHook',
        'default_hooks.self_distill.loss_weight=0.5',
        'default_hooks.self_distill.terms.boxes=None',
    ]
    shown = inspect(RETINANET, '--size', '128', '--cfg-options', *options)
    table = rows(shown)
    assert table.keys() == {'term', 'features', 'logits'}
    assert [table[name][2] for name in ('features', 'logits')] == ['0.25', '0.5']
    assert '2x32x32x32' in table['features'][-1]
    assert '128 x 128 pixels' in shown
    assert 'has no hook' not in shown


def test_shows_views_and_where_images_without_labels_come_from(
    inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = 'default_hooks.self_distill'
    options = [
        f'{hook}.type=mmselfdistill.EMATeacherHook',
        f'{hook}.view.blur=1.0',
        f'{hook}.unlabeled.data=data/many',
        # twice as many as with labels
        f'{hook}.unlabeled.batch_size=32',
    ]
    shown = inspect(RETINANET, '--size', '64', '--cfg-options', *options)
    anchors = 4 * (16**2 + 8**2 + 4**2)
    assert rows(shown)['logits'][-2:] == [
        f'{2 * anchors}x10',
        f'{4 * anchors}x10',
    ]
    assert 'images with labels through a view: blur=1.' in shown
    assert 'Images without labels come from: data/many.' in shown
    missing = [line for line in shown.splitlines() if line.startswith('Not on this')]
    assert missing == [
        "Not on this machine: the folder 'data/many' (unlabeled.data).",
    ]
    (tmp_path / 'many').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    options[2] = f'{hook}.unlabeled.data=~/many'
    shown = inspect(RETINANET, '--size', '64', '--cfg-options', *options)
    assert 'Images without labels come from: ~/many.' in shown
    assert 'Not on this machine' not in shown


@pytest.mark.parametrize(
    ('sizes', 'counts'),
    [((16, 32), (2, 4)), ((16, 2), (16, 2)), ((8, 2), (8, 2)), ((4, 6), (2, 3))]
    + [((16, 1), (16, 1)), ((1, 1), (2, 2)), ((3, 3), (2, 2)), ((0, 4), (2, 2))],
)
def test_batches_have_the_ratio_of_the_runs(
    sizes: tuple[int, int], counts: tuple[int, int]
) -> None:
    samples = [DetDataSample(metainfo=dict(img_id=i)) for i in range(2)]
    raw = dict(inputs=[torch.zeros(1), torch.ones(1)], data_samples=samples)
    found = in_ratio(raw, copy.deepcopy(raw), *sizes)
    assert tuple(len(each['inputs']) for each in found) == counts
    for each in found:
        numbers = [float(image) for image in each['inputs']]
        assert numbers == [i % 2 for i in range(len(numbers))]
        assert [sample.img_id for sample in each['data_samples']] == numbers
        # each is written into by itself
        assert len({id(sample) for sample in each['data_samples']}) == len(numbers)


def test_a_semi_supervised_detector_is_shown(inspect: Inspect) -> None:
    family, hook = 'mmdet::soft_teacher/', 'default_hooks.self_distill'
    name = f'{family}soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco'
    options = [
        f'{hook}.type=mmselfdistill.EMATeacherHook',
        f'{hook}.unlabeled.data=data/many',
    ]
    assert {*rows(inspect(name, '--size', '64'))} > {'features', 'logits', 'boxes'}
    shown = inspect(name, '--size', '64', '--cfg-options', *options)
    # with labels none, without one for each of 3 anchors at 341 places of two images
    assert re.search(r'\| proposals +\|.*\| - +\| 2046x1 ', shown)
    assert "its weights are not the student's" not in shown


def test_names_a_teacher_that_is_not_here(inspect: Inspect, tmp_path: Path) -> None:
    hook = 'default_hooks.self_distill'
    kind = f'{hook}.type=mmselfdistill.SelfDistillHook'
    there = tmp_path / 'there.pth'
    there.touch()
    line = "Not on this machine: the file 'gone.pth' (teacher)."
    for teacher, count in (('gone.pth', 1), (there, 0), ('https://host/a.pth', 0)):
        options = [kind, f'{hook}.teacher={teacher}']
        shown = inspect(RETINANET, '--size', '64', '--cfg-options', *options)
        assert shown.splitlines().count(line) == count


def test_names_what_a_bad_setting_could_have_been(inspect: Inspect) -> None:
    option = 'default_hooks.self_distill.terms.logit.site=logit'
    hook = 'default_hooks.self_distill.type=mmselfdistill.EMATeacherHook'
    with pytest.raises(SystemExit, match=r'^terms\.logit[^\n]*$'):
        inspect(RETINANET, '--cfg-options', hook, option)


@pytest.mark.parametrize('size', ['0', '-5'])
def test_a_size_is_above_0(size: str, inspect: Inspect) -> None:
    message = rf'^--size: expected an integer >= 1, but got {size}$'
    with pytest.raises(SystemExit, match=message):
        inspect(RETINANET, '--size', size)


def test_counts_the_operations_of_both_passes() -> None:
    layer = nn.Linear(3, 5)
    x = torch.randn(7, 3, requires_grad=True)
    # two for each multiplication; two gradients cost as much again, each
    assert operations(lambda: layer(x)) == 2 * 7 * 3 * 5
    assert operations(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 3 * 5


@pytest.mark.parametrize(
    ('config', 'option', 'message'),
    [
        (RETINANET, 'default_scope=None', 'default_scope: expected one of'),
        (
            RETINANET,
            'default_hooks.mine.type=mmselfdistill.EmaTeacherHook',
            "default_hooks.mine.type: unknown 'mmselfdistill.EmaTeacherHook'; did you "
            "mean 'mmselfdistill.EMATeacherHook'?",
        ),
        (
            RETINANET,
            'default_hooks.mine.type=EMATeacherHok',
            "default_hooks.mine.type: unknown 'EMATeacherHok'; did you mean "
            "'mmselfdistill.EMATeacherHook'?",
        ),
        (
            RETINANET,
            'default_hooks.mine.type=mmselfdistil.EMATeacherHook',
            "default_hooks.mine.type: unknown 'mmselfdistil.EMATeacherHook'; did you ",
        ),
        (
            RETINANET,
            'default_hooks.mine.loss_weight=0',
            "default_hooks.mine: expected a type, such as 'mmselfdistill."
            "EMATeacherHook', but got only {'loss_weight': 0}",
        ),
        (
            'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco',
            'train_dataloader=None',
            'FasterRCNN makes no training step on this machine, without '
            'self-distillation: RuntimeError: carafe_forward_impl',
        ),
    ],
)
def test_says_in_a_line_why_nothing_can_be_shown(
    config: str, option: str, message: str, inspect: Inspect
) -> None:
    with pytest.raises(SystemExit) as done:
        inspect(config, '--cfg-options', option)
    (line,) = str(done.value).splitlines()
    assert line.startswith(message)
