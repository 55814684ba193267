"""Runs next to each other, against figures worked out by hand."""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from rich.console import Console
from run_files import MAP, detections, epochs, log, truth

from mmselfdistill.cli import main
from mmselfdistill.commands.compare import compare
from mmselfdistill.commands.predictions import read_predictions
from mmselfdistill.commands.runs import Run


def cells(tables: Any) -> list[list[list[str]]]:
    return [list(map(list, zip(*(c._cells for c in t.columns)))) for t in tables]


def test_a_prefix_of_ones_own(tmp_path: Path) -> None:
    for name, score in (('plain', 0.25), ('ours', 0.5)):
        entry = {'my/bbox_mAP': score, 'my/a/b_precision': score, 'step': 1}
        log(tmp_path / name / '1', *epochs(1, 1.0), entry)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    runs, classes = cells(compare(folders, tmp_path / 'a.png'))
    assert [row[1] for row in runs] == ['25.0', '50.0']
    assert classes == [['a/b', '25.0', '50.0', '+25.0']]


def test_a_tracker_has_shares_and_counts(tmp_path: Path) -> None:
    found = {'mot/HOTA': 0.61, 'mot/FP': 10200, 'mot/MT': 50.5, 'abs_rel': 0.1234}
    more = {'mot/HOTA': 0.62, 'mot/FP': 12345, 'mot/MT': 40, 'abs_rel': 0.25}
    first, second = dict(found, step=1), dict(more, step=2)
    log(tmp_path / 'run/1', *epochs(1, 1.0, 1.0), first, second)
    tables = compare([tmp_path / 'run'], tmp_path / 'a.png', list(found))
    # the last, the best, and where it was
    assert [row[1:4] for (row,) in cells(tables)] == [
        ['62.0', '62.0', '2'],
        ['12345', '10200', '1'],
        ['40', '50.5', '1'],
        ['0.25', '0.1234', '1'],
    ]


def test_what_a_run_imported_is_not_imported_again(tmp_path: Path) -> None:
    log(tmp_path / 'plain/1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    config = tmp_path / 'plain/1/vis_data/config.py'
    config.write_text("custom_imports = dict(imports=['not_here'])\n")
    (table,) = compare([tmp_path / 'plain'], tmp_path / 'a.png')
    assert table.row_count == 1


def test_one_table_and_one_picture(tmp_path: Path) -> None:
    first = {MAP: 0.2, 'coco/a_precision': 0.1, 'coco/b_precision': 0.3, 'step': 2}
    last = {MAP: 0.3, 'coco/a_precision': 0.5, 'coco/b_precision': 0.1, 'step': 2}
    log(tmp_path / 'plain/1', *epochs(1, 1.0, 1.0), {MAP: 0.4, 'step': 1}, first)
    log(tmp_path / 'ours/1', *epochs(1, 1.0, 1.5), last)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    runs, classes = cells(compare(folders, tmp_path / 'a/b.png'))
    assert runs == [
        ['plain', '20.0', '40.0', '1', '2 epochs', '1.000', '0.33'],
        ['ours', '30.0', '30.0', '2', '2 epochs', '1.250', '0.42'],
    ]
    assert classes == [
        ['a', '10.0', '50.0', '+40.0'],
        ['b', '30.0', '10.0', '-20.0'],
    ]
    picture = cv2.imread(str(tmp_path / 'a/b.png'))
    # two rows of panels
    assert picture.shape[0] > picture.shape[1] / 2


@pytest.mark.parametrize(
    ('names', 'called'),
    [
        # the folders of a plain run, and of the same with a flag and with a config
        (
            ('retina_r18_50e_digits', 'retina_r18_50e_digits_ema'),
            ('…digits', '…digits_ema'),
        ),
        (
            ('retina_r18_50e_digits', 'retina_r18_ema-50e_digits'),
            ('…50e_digits', '…ema-50e_digits'),
        ),
        (('gfl_plain', 'gfl_ema'), ('gfl_plain', 'gfl_ema')),
        (('plain/retina_r18_50e', 'ema/retina_r18_50e'),) * 2,
    ],
)
def test_a_terminal_of_80_columns_tells_runs_apart(
    names: tuple[str, str],
    called: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path(name) for name in names]
    for folder in folders:
        log(folder / '1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    (table,) = compare(folders, Path('a.png'))
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    # a name may go on in the next line
    rows = re.findall(r'^│ (\S+) +│(.*)', capture.get(), re.MULTILINE)
    shown = [name if '40.0' in rest else f'+{name}' for name, rest in rows]
    assert ' '.join(shown).replace(' +', '') == ' '.join(called)


def test_a_run_is_as_long_as_its_last_validation(tmp_path: Path) -> None:
    # the log's interval is four iterations
    steps = [dict(loss=1.0, step=n, time=1.0) for n in (4, 8)]
    log(tmp_path / 'plain/1', *steps, {MAP: 0.4, 'step': 10})
    ((row,),) = cells(compare([tmp_path / 'plain'], tmp_path / 'a.png'))
    assert row[3:5] == ['10', '10 iterations']


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    log(tmp_path / 'plain/1', *epochs(1, 1.0), {MAP: 0.4, 'step': 1})
    twice = [tmp_path / 'plain', tmp_path / 'plain']
    with pytest.raises(ValueError, match='plain: this run is given twice'):
        compare(twice, tmp_path / 'a.png')


def test_a_class_without_objects_is_left_out(tmp_path: Path) -> None:
    for name, values in (('plain', (0.1, 0.2, math.nan)), ('ours', (0.3, 0.1, 0.4))):
        keys = (f'coco/{each}_precision' for each in 'abc')
        entry = {MAP: 0.2, **dict(zip(keys, values)), 'step': 1}
        log(tmp_path / name / '1', *epochs(1, 1.0), entry)
    folders = [tmp_path / 'plain', tmp_path / 'ours']
    _, classes = cells(compare(folders, tmp_path / 'a.png'))
    assert classes == [['a', '10.0', '30.0', '+20.0'], ['b', '20.0', '10.0', '-10.0']]


@pytest.mark.parametrize(
    ('seeds', 'cautious'),
    [
        ((None,), False),
        ((0, 0), False),
        ((0, 1), True),
        ((0, None), True),
        ((None, None), True),
    ],
)
def test_runs_of_several_seeds_differ_by_chance(
    seeds: tuple[int | None, ...], cautious: bool, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ('plain', 'ours')][: len(seeds)]
    for folder, seed in zip(folders, seeds):
        log(folder / '1', *epochs(1, 1.0, 1.0), {MAP: 0.4, 'step': 1})
        config = Config(dict(randomness=dict(seed=seed)))
        config.dump(str(folder / '1/vis_data/config.py'))
    (table,) = compare(folders, tmp_path / 'a.png')
    assert (table.caption is not None) == cautious


NO_BOX = 'no box from --min-score on'


def test_predictions_of_each_run(tmp_path: Path) -> None:
    annotations, files = truth(tmp_path), []
    for name, label in (('one', 0), ('other', 1)):
        log(tmp_path / name / '1', *epochs(1, 1.0), {MAP: 0.2, 'step': 1})
        files.append(tmp_path / f'{name}.pkl')
        found = [detections(2, ((0, 0, 10, 10), label, 0.75))]
        files[-1].write_bytes(pickle.dumps(found))
    folders = [tmp_path / 'one', tmp_path / 'other']
    both: Any = dict(predictions=files, annotations=annotations)
    _, _, calibration = cells(compare(folders, tmp_path / 'a.png', **both))
    # right, and wrong
    assert calibration == [['one', '1', '25.00 %'], ['other', '1', '75.00 %']]
    with pytest.raises(ValueError, match='--predictions: 1 for 2 runs'):
        compare(folders, tmp_path / 'a.png', predictions=files[:1])
    # none of a run is as sure, or of both: the picture has the rest
    files[1].write_bytes(pickle.dumps([detections(2, ((0, 0, 10, 10), 1, 0.25))]))
    for least, first in ((0.3, ['1', '25.00 %']), (0.8, ['0', NO_BOX])):
        (tmp_path / 'a.png').unlink()
        tables = compare(folders, tmp_path / 'a.png', **both, min_score=least)
        assert cells(tables)[-1] == [['one', *first], ['other', '0', NO_BOX]]
        assert (tmp_path / 'a.png').is_file()
    with pytest.raises(
        ValueError, match=r'^--min-score: expected a number in \[0, 1\]'
    ):
        compare(folders, tmp_path / 'a.png', **both, min_score=30)
    with pytest.raises(ValueError, match=r'^--names: a, a: two runs have the same'):
        compare(folders, tmp_path / 'a.png', names=['a', 'a'])


def test_boxes_of_unknown_classes_are_said(tmp_path: Path) -> None:
    annotations, files = truth(tmp_path), []
    for name in ('one', 'other'):
        log(tmp_path / name / '1', *epochs(1, 1.0), {MAP: 0.2, 'step': 1})
        files.append(tmp_path / f'{name}.pkl')
        found = [detections(2, ((0, 0, 10, 10), 0, 0.75))]
        files[-1].write_bytes(pickle.dumps(found))
    config = tmp_path / 'one/1/vis_data/config.py'
    text = 'val_dataloader = dict(dataset=dict({}))\n'
    config.write_text(text.format("type='CocoDataset', metainfo=dict(classes=['a'])"))
    folders = [tmp_path / 'one', tmp_path / 'other']
    both: Any = dict(predictions=files, annotations=annotations)
    caption = compare(folders, tmp_path / 'a.png', **both)[-1].caption
    assert str(caption).startswith('The classes of other are not known: ')
    # numbered by their ids: what was a is b
    config.write_text(text.format("type='mmdet.Objects365V1Dataset'"))
    with pytest.raises(ValueError, match="has none of the run's classes"):
        compare(folders, tmp_path / 'a.png', **both)


def test_names_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = 'run[lr=0.01]', 'run[/x]', 'a$lr_{$'
    for name in names:
        entry = {MAP: 0.2, 'coco/[car] :car:_precision': 0.1, 'step': 1}
        log(tmp_path / name.replace('/', '_') / '1', *epochs(1, 1.0), entry)
    folders = [str(tmp_path / name.replace('/', '_')) for name in names]
    picture = tmp_path / 'picture'
    main(['compare', *folders, '--names', *names, '--picture', str(picture)])
    shown = capsys.readouterr().out
    for text in (*names, '[car] :car:'):
        assert f' {text} ' in shown
    assert f'Picture: {picture}.png' in shown.replace('\n', '')
    assert (tmp_path / 'picture.png').is_file()


def test_a_teacher_that_was_validated_is_a_row_of_its_own(tmp_path: Path) -> None:
    steps = epochs(1, 1.0, 1.0)
    # both, as `validate='both'` logs them; there is no teacher at the first validation
    both = {MAP: 0.3, f'teacher/{MAP}': 0.5, 'step': 2}
    log(tmp_path / 'ours/1', *steps, {MAP: 0.2, 'step': 1}, both)
    log(tmp_path / 'other/1', *steps, {f'teacher/{MAP}': 0.6, 'step': 2})
    log(tmp_path / 'plain/1', *steps, {MAP: 0.4, 'step': 2})
    folders = [tmp_path / name for name in ('ours', 'other', 'plain')]
    (table,) = cells(compare(folders, tmp_path / 'a.png'))
    assert [row[:4] for row in table] == [
        ['ours', '30.0', '30.0', '2'],
        ['other (teacher)', '60.0', '60.0', '2'],
        ['plain', '40.0', '40.0', '2'],
        ['ours (teacher)', '50.0', '50.0', '2'],
    ]

    # by the name in the log too
    metrics = [f'teacher/{MAP}']
    assert cells(compare(folders, tmp_path / 'a.png', metrics=metrics)) == [table]


def test_a_model_of_a_student_and_a_teacher_is_one_run(tmp_path: Path) -> None:
    both = {f'student/{MAP}': 0.3, f'teacher/{MAP}': 0.5, 'step': 1}
    log(tmp_path / 'soft/1', *epochs(1, 1.0), both)
    tables = compare([tmp_path / 'soft'], tmp_path / 'a.png')
    assert [table.title for table in tables] == [f'student/{MAP}', f'teacher/{MAP}']
    assert [rows[0][1] for rows in cells(tables)] == ['30.0', '50.0']


def test_of_errors_the_smallest_is_the_best(tmp_path: Path) -> None:
    steps = [dict(loss=1.0, step=at, time=0.5) for at in (5, 10)]
    log(tmp_path / 'a/1', *steps, dict(rmse=3.0, step=5), dict(rmse=4.0, step=10))
    assert Run.read(tmp_path / 'a').curve('rmse').best() == (5, 3.0)
    (row,) = cells(compare([tmp_path / 'a'], tmp_path / 'a.png'))[0]
    assert row[1:4] == ['4', '3', '5']


def test_each_metric_has_panels_of_its_own(tmp_path: Path) -> None:
    scores = {MAP: 0.3, 'coco/segm_mAP': 0.2, 'step': 1}
    log(tmp_path / 'one/1', *epochs(1, 1.0), scores)
    tables = compare([tmp_path / 'one'], tmp_path / 'a.png')
    assert [table.title for table in tables] == [MAP, 'coco/segm_mAP']
    height, width, _ = cv2.imread(str(tmp_path / 'a.png')).shape
    assert height / width == pytest.approx(2 * 4.2 / 13, abs=0.01)
    compare([tmp_path / 'one'], tmp_path / 'a.png', metrics=['coco/segm_mAP'])
    height, width, _ = cv2.imread(str(tmp_path / 'a.png')).shape
    assert height / width == pytest.approx(4.2 / 13, abs=0.01)


def test_says_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no run has logged its training there'):
        compare([tmp_path], tmp_path / 'a.png')
    log(tmp_path / 'one/1', *epochs(1, 1.0), {MAP: 0.2, 'step': 1})
    log(tmp_path / 'two/1', *epochs(1, 1.0), {'mIoU': 0.2, 'step': 1})
    folders = [tmp_path / 'one', tmp_path / 'two']
    with pytest.raises(ValueError, match=f'in common: one: {MAP}; two: mIoU'):
        compare(folders, tmp_path / 'a.png')
    with pytest.raises(ValueError, match="two: has logged no 'coco/bbox_mAP'"):
        compare(folders, tmp_path / 'a.png', metrics=[MAP])
    with pytest.raises(ValueError, match='--names: 1 for 2 runs'):
        compare(folders, tmp_path / 'a.png', names=['x'])
    np.savez(tmp_path / 'no.npz', a=1)
    (tmp_path / 'no.pkl').write_bytes(pickle.dumps([1]))
    for name in ('no.npz', 'no.pkl', 'gone.pkl'):
        with pytest.raises(ValueError, match='--predictions: '):
            read_predictions(tmp_path / name)
