"""What a run prints of its distillation."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from images import ImageToy, Numbered, losses
from setting import Setting, Small
from toys import distilled

from mmselfdistill.core import distiller, loss_trial, trial
from mmselfdistill.core.report import describe
from mmselfdistill.core.teacher import tensors_of


def test_the_table_says_what_is_compared_and_what_the_teacher_costs(
    built: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    # notebooks and hosted runs set it: the log has no colours all the same
    monkeypatch.setenv('FORCE_COLOR', '1')
    terms = dict(logits=dict(weight=3.0), boxes=dict(schedule='cosine'))
    setting = Setting(built, terms, loss_weight=0.5)
    # before there is a teacher, the student's own shapes are shown
    setting.distiller.teacher = None
    with setting:
        setting.losses()
    text = describe(setting.distiller)
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    # 2 images of 16x16, 8x8 and 4x4 positions; 10 classes, 4 sides of 9 bins
    positions = 2 * (16 * 16 + 8 * 8 + 4 * 4)
    bins = 4 * 9
    shapes = '2x32x16x16 2x32x8x8 2x32x4x4'
    assert cells == [
        ['term', 'site', 'loss', 'weight', 'schedule', 'tensors'],
        ['features', 'features', 'PKDLoss', '0.25', 'constant', shapes],
        ['logits', 'logits', 'SoftTargetLoss', '1.5', 'constant', f'{positions}x10'],
        ['boxes', 'boxes', 'BoxDistillLoss', '0.125', 'cosine', f'{positions}x{bins}'],
    ]
    first, last = text.splitlines()[0], text.splitlines()[-1]
    assert first.startswith('Self-distillation of GFL (')
    parameters = sum(p.numel() for p in setting.model.parameters())
    size = sum(t.numel() * t.element_size() for t in tensors_of(setting.model).values())
    assert f'{parameters / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB' in last


def test_without_a_teacher_the_table_is_all_that_is_said(
    built: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for each in (distiller, loss_trial, trial):
        monkeypatch.setattr(each, 'print_log', lambda text, **_: said.append(text))
    with Setting(built) as setting:
        setting.distiller.teacher = None
        setting.losses()
        setting.losses()
    # the student's own tensors stand in for the teacher's: they keep their gradient
    assert said == [describe(setting.distiller)]


def test_what_was_found_and_what_is_left_out_is_said(built: Small) -> None:
    setting = Setting(built)
    plain = describe(setting.distiller)
    assert 'Repeated too' not in plain and 'Not distilled' not in plain
    setting.distiller.labeled.found = ['adapter.forward']
    plan: Any = setting.distiller.labeled.plan
    plan.skipped['mask_head'] = 'it is not known how to read what it returns'
    try:
        text = describe(setting.distiller)
    finally:
        del plan.skipped['mask_head']
    assert text.splitlines()[-3:-1] == [
        'Repeated too, since its output is used between two calls: adapter.forward.',
        'Not distilled: mask_head: it is not known how to read what it returns.',
    ]


@pytest.mark.parametrize(
    ('terms', 'loss_weight', 'said'),
    [
        (None, 1.0, 0),
        (None, 0.0, 1),
        # for images without labels alone, and these have a weight of 0
        (dict(features=None, logits=dict(on='unlabeled'), boxes=None), 1.0, 1),
        (dict(features=None, logits=dict(weight=0), boxes=None), 1.0, 1),
        (dict(features=None, logits=dict(weight=0)), 1.0, 0),
    ],
)
def test_a_run_that_distills_nothing_is_said(
    built: Small, terms: Any, loss_weight: float, said: int
) -> None:
    settings: Any = dict(loss_weight=loss_weight, unlabeled=dict(weight=0))
    text = describe(Setting(built, terms, **settings).distiller)
    line = 'No term has a weight: nothing will be distilled.'
    assert text.splitlines().count(line) == said


@pytest.mark.parametrize(
    ('teacher_norm', 'trains', 'said'),
    [('batch', True, 1), ('batch', False, 0), ('running', True, 0), (None, True, 0)],
)
def test_norms_that_go_by_the_batch_are_said(
    built: Small, teacher_norm: str | None, trains: bool, said: int
) -> None:
    setting = Setting(built, teacher_norm=teacher_norm)
    norm = setting.model.get_submodule('backbone.bn1')
    # of this model, all are frozen
    norm.train(trains)
    try:
        text = describe(setting.distiller)
    finally:
        norm.eval()
    line = "The teacher's batch norms normalise by the batch, as the student's do."
    assert text.splitlines().count(line) == said


def test_a_notebook_is_given_the_table_and_shown_nothing(
    built: Small,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Setting(built) as setting:
        setting.losses()
    text = describe(setting.distiller)
    # what rich knows a notebook by
    shell = type('ZMQInteractiveShell', (), {})
    monkeypatch.setattr(builtins, 'get_ipython', shell, raising=False)
    capsys.readouterr()
    assert describe(setting.distiller) == text
    assert capsys.readouterr().out == ''


def test_where_nothing_is_repeated_without_labels_nothing_is_said_of_it() -> None:
    nothing = dict(batches=Numbered(), weight=1.0)
    with distilled(ImageToy().eval(), {}, unlabeled=nothing) as taught:
        losses(taught)
        ours, others = (each.reuse for each in taught.comparisons())
        ours.paths, ours.refused, others.paths = {}, 'a reason', None
        (said,) = (x for x in describe(taught).splitlines() if 'Frozen' in x)
        assert said == 'Frozen, but run by the teacher too: a reason.'
        assert 'Without labels:' not in describe(taught)
        others.paths, others.refused = {}, 'another'
        assert 'Without labels: Frozen, but run by the teacher too: another.' in (
            describe(taught).splitlines()
        )
