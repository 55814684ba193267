"""Several runs in one table and one picture."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from mmselfdistill.commands.predictions import Judged, judge, read_predictions
from mmselfdistill.commands.runs import Run, class_names, seed_of, sorts_categories
from mmselfdistill.errors import check_number
from mmselfdistill.hooks.validation import PREFIX

# the ends of the names of metrics that stand for a run
MAIN = (
    'bbox_mAP',
    'segm_mAP',
    'bbox_AP',
    'segm_AP',
    '/mAP',
    'mIoU',
    'mDice',
    'mFscore',
    'PQ',
    'accuracy/top1',
)
# the table cuts longer ones where a terminal has 80 columns
LONG_NAME = 24


def shared_metrics(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    """Return the metrics to compare: those wanted, or the main ones of all runs.

    Raises:
        ValueError: If a run has not logged one of them, or there is none.
    """
    if wanted:
        # a teacher is a run of its own, whose metrics have the stock names
        logged = {name for run in runs for name in run.names()}
        chosen = [m if m in logged else m.replace(PREFIX, '', 1) for m in wanted]
        for run in runs:
            for metric in chosen:
                run.curve(metric)
        return chosen
    common = set(runs[0].names()).intersection(*(run.names() for run in runs))
    main = [name for end in MAIN for name in sorted(common) if name.endswith(end)]
    found = main or sorted(common)[:1]
    if not found:
        each = '; '.join(f'{r.name}: {", ".join(r.names()) or "none"}' for r in runs)
        raise ValueError(f'the runs have no metric in common: {each}')
    return found


def table_of(runs: Sequence[Run], metric: str) -> Table:
    """Return the last and the best value of a metric, and what each run took."""
    curves = [run.curve(metric) for run in runs]
    hours = [curve.hours_at([curve.train[-1]['at']])[0] for curve in curves]
    unit, factor = ('minutes', 60) if max(hours) < 1 else ('hours', 1)
    table = Table(title=metric)
    table.add_column('', overflow='fold')
    for column in ('last', 'best', 'at', 'length', 's/iter.', unit):
        table.add_column(column, justify='right', no_wrap=True)
    for run, curve, spent in zip(runs, curves, hours):
        at, _ = curve.best()
        # the last iterations may not be logged
        end = max(int(run.train[-1]['at']), curve.length)
        table.add_row(
            run.name,
            curve.text(curve.length),
            curve.text(at),
            str(at),
            f'{end} {curve.unit}',
            f'{curve.seconds(0, end):.3f}',
            f'{factor * spent:.2f}',
        )
    return table


def caution_of(seeds: Sequence[int | None]) -> str | None:
    """Return what to say of runs that do not have one seed."""
    if len(seeds) < 2 or (None not in seeds and len(set(seeds)) < 2):
        return None
    return (
        'The seeds of these runs differ, or are drawn at each start: a part of the '
        'difference is chance. Set randomness.seed.'
    )


def differences_of(
    first: Mapping[str, float], second: Mapping[str, float]
) -> dict[str, float]:
    """Return what the second has more of each class that both know."""
    return {name: second[name] - first[name] for name in first if name in second}


def table_of_classes(runs: Sequence[Run], classes: Sequence[dict[str, float]]) -> Table:
    """Return the classes of the first two runs, the largest gain first."""
    first, second = classes[:2]
    gains = differences_of(first, second)
    table = Table(title='By class')
    table.add_column('class')
    for column in (runs[0].name, runs[1].name, 'difference'):
        table.add_column(column, justify='right', overflow='fold')
    for name in sorted(gains, key=lambda name: -gains[name]):
        values = f'{first[name]:.1f}', f'{second[name]:.1f}', f'{gains[name]:+.1f}'
        table.add_row(name, *values)
    return table


def table_of_calibration(runs: Sequence[Run], judged: Sequence[Judged]) -> Table:
    """Return the calibration error of each run's predictions."""
    table = Table(title='Calibration')
    for column in ('', 'predictions', 'expected calibration error'):
        table.add_column(column, justify='left' if column == '' else 'right')
    for run, each in zip(runs, judged):
        count, error = each.calibration.count.sum(), each.calibration.error
        written = f'{100 * error:.2f} %' if count else 'no box from --min-score on'
        table.add_row(run.name, f'{count:.0f}', written)
    return table


def _of_unknown_classes(
    names: Sequence[str], known: Sequence[Sequence[str]]
) -> str | None:
    """Return what to say of runs whose classes are not known."""
    unknown = [name for name, classes in zip(names, known) if not classes]
    if not unknown:
        return None
    return (
        f'The classes of {", ".join(unknown)} are not known: taken for all categories '
        'of the annotations, in their order. Wrong if the run has fewer of them.'
    )


def names_of(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return a name for each run: as given, the folder's, or its path.

    Raises:
        ValueError: If as many are not given as there are runs, or a run is given twice.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places):
        if places.count(place) > 1:
            raise ValueError(f'{folder}: this run is given twice')
    if names and len(names) != len(folders):
        raise ValueError(f'--names: {len(names)} for {len(folders)} runs')
    if len(set(names)) < len(names):
        raise ValueError(f'--names: {", ".join(names)}: two runs have the same')
    short = list(names) or [place.name for place in places]
    if len(set(short)) < len(short):
        short = [str(folder) for folder in folders]
    return short if names else where_they_differ(short)


def where_they_differ(names: Sequence[str]) -> list[str]:
    """Return long names without the words that they all begin with.

    Of ``retinanet_r50_fpn_1x_coco`` and ``retinanet_r50_fpn_1x_coco_ema`` are left
    ``…coco`` and ``…coco_ema``: at least a word of each.
    """
    words = [re.findall(r'[^/_]+[/_]*|[/_]+', name) for name in names]
    columns = zip(*(each[:-1] for each in words))
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    begun = sum(len(column[0]) for column in shared)
    if len(names) < 2 or not begun or max(map(len, names)) <= LONG_NAME:
        return list(names)
    return [f'…{name[begun:]}' for name in names]


def compare(
    folders: Sequence[Path],
    picture: Path,
    metrics: Sequence[str] = (),
    names: Sequence[str] = (),
    predictions: Sequence[Path] = (),
    annotations: Path | None = None,
    min_score: float = 0.3,
) -> list[Table]:
    """Compare runs: write the picture, and return the tables.

    The teacher of a run that validated it is in them too, under a name of its own.

    Args:
        folders (Sequence[Path]): Their work dirs.
        picture (Path): To be written.
        metrics (Sequence[str]): By their names in the log. Defaults to (): the main
            ones that all runs have logged.
        names (Sequence[str]): Of the runs. Defaults to (): those of the folders.
        predictions (Sequence[Path]): A file of MMEngine's ``DumpResults`` for each run.
            Defaults to ().
        annotations (Path, optional): COCO's, for predictions of boxes.
        min_score (float): Boxes below it are left out of the calibration. Defaults to
            0.3.

    Raises:
        ValueError: If a folder holds no run, or runs and files do not go together.
    """
    check_number('--min-score', min_score, 0.0, 1.0)
    called = names_of(folders, names)
    sides = [Run.read(folder, n).sides() for folder, n in zip(folders, called)]
    runs = [each[0] for each in sides]
    shown = [*runs, *(side for each in sides for side in each[1:])]
    chosen = shared_metrics(shown, metrics)
    if predictions and len(predictions) != len(runs):
        raise ValueError(f'--predictions: {len(predictions)} for {len(runs)} runs')
    known = [class_names(folder) for folder in folders] if predictions else []
    judged = [
        judge(
            read_predictions(path),
            annotations,
            min_score,
            of_run,
            by_id=sorts_categories(folder),
        )
        for path, folder, of_run in zip(predictions, folders, known)
    ]
    tables = [table_of(shown, metric) for metric in chosen]
    tables[0].caption = caution_of([seed_of(folder) for folder in folders])
    classes = [j.classes for j in judged] or [run.classes() for run in runs]
    gains = differences_of(*classes[:2]) if len(runs) > 1 else {}
    if gains:
        tables.append(table_of_classes(runs, classes))
    if judged:
        tables.append(table_of_calibration(runs, judged))
        if annotations is not None:
            tables[-1].caption = _of_unknown_classes(called, known)
    # matplotlib takes a second to import
    from mmselfdistill.commands.pictures import draw_comparison

    curves = {m: {run.name: run.curve(m) for run in shown} for m in chosen}
    calibrations = {
        run.name: j.calibration
        for run, j in zip(runs, judged)
        if j.calibration.count.size
    }
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_comparison(picture, curves, gains, calibrations)
    return tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work dirs')
    parser.add_argument('--names', nargs='+', default=(), help='of the runs')
    parser.add_argument(
        '--metric',
        nargs='+',
        default=(),
        help='as the log names it, such as coco/bbox_mAP. Defaults to the main ones',
    )
    parser.add_argument(
        '--predictions',
        nargs='+',
        type=Path,
        default=(),
        help='a .pkl for each run, as `tools/test.py --out` or DumpResults writes it',
    )
    parser.add_argument(
        '--annotations', type=Path, help='of COCO, where predictions are boxes'
    )
    parser.add_argument(
        '--min-score',
        type=float,
        default=0.3,
        help='boxes below it are left out of the calibration. Defaults to 0.3',
    )
    parser.add_argument(
        '--picture',
        type=Path,
        default=Path('comparison.png'),
        help='to be written. Defaults to comparison.png',
    )


def run(args: argparse.Namespace) -> None:
    """Compare the runs of the command line."""
    picture = args.picture if args.picture.suffix else args.picture.with_suffix('.png')
    tables = compare(
        args.runs,
        picture,
        args.metric,
        args.names,
        args.predictions,
        args.annotations,
        args.min_score,
    )
    # a run may be called run[lr=0.01], and a class :car:
    console = Console(markup=False, emoji=False)
    for table in tables:
        console.print(table)
    print(f'Picture: {picture}')
