"""Train a small model with 100 labelled scenes, with and without 1,000 others.

One run also learns from scenes without labels, taught by its own running average; the
other is the plain run that lasts about as long. Both have the same labels, weights and
order at the start. The table and the pictures say what was measured, gain or not.

    python -m tools.demo --task det
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from mmselfdistill.commands.runs import Curve
from mmselfdistill.zoo import read_config
from tools.dataset_converters.digits import write_digits
from tools.demo_arms import Arm, run_arms, with_data


class Task(NamedTuple):
    """What is compared: two configs of one model, and the metric."""

    plain: str
    unlabeled: str
    metric: str  # its key in the log
    name: str


TASKS = {
    'det': Task(
        plain='retinanet_r18_fpn_1xb8-170e_digits',
        unlabeled='retinanet_r18_fpn_1xb8-unlabeled-90e_digits',
        metric='coco/bbox_mAP',
        name='box AP',
    ),
    'seg': Task(
        plain='unet-s4-d8_fcn_1xb8-9000_digits-64x64',
        unlabeled='unet-s4-d8_fcn_1xb8-unlabeled-4800_digits-64x64',
        metric='mIoU',
        name='mIoU',
    ),
}
SCENES = dict(train=100, val=400, size=64, seed=0, unlabeled=1000)
UNLABELED = f'{SCENES["unlabeled"]:,} without labels'


def make_arms(task: Task, args: argparse.Namespace) -> list[Arm]:
    """Return both arms, the self-distilled one first."""
    arms = []
    for title, name in ((UNLABELED, task.unlabeled), ('plain', task.plain)):
        cfg = read_config(f'mmselfdistill::digits/{name}', None)
        with_data(cfg, args.data, args.seed)
        folder = folder_of(args) / name
        arms.append(Arm(title, cfg, folder, task.metric))
    return arms


def folder_of(args: argparse.Namespace) -> Path:
    """Return the folder of a task's runs; each further seed has one of its own."""
    own = f'_seed{args.seed}' if args.seed else ''
    folder: Path = args.work_dir / f'{args.task}{own}'
    return folder


def show_table(console: Console, task: Task, curves: dict[str, Curve]) -> None:
    """Print the metric and the cost of each run."""
    table = Table(title=f'{SCENES["train"]} labelled scenes of digits')
    for column in ('', 'iterations', 'min.', task.name):
        table.add_column(column, justify='right' if column else 'left')
    for title, curve in curves.items():
        iterations = f'{curve.iterations_at(curve.length):.0f}'
        score = f'{curve.score_at(curve.length):.1f}'
        table.add_row(title, iterations, f'{minutes(curve):.1f}', score)
    console.print(table)
    console.print(verdict(task, *curves.values()))


def minutes(curve: Curve) -> float:
    """Return how long a run has trained, validation left out."""
    return 60 * float(curve.hours_at([curve.length])[0])


def verdict(task: Task, distilled: Curve, plain: Curve) -> str:
    """Return in words what the table says, gain or not."""
    gain = distilled.score_at(distilled.length) - plain.score_at(plain.length)
    # side by side: whatever else the machine did slowed both
    cost = minutes(distilled) / minutes(plain)
    return (
        f'{gain:+.1f} {task.name} over the plain run, in {cost:.2f} times its time. '
        'This is one seed: repeat with other seeds (--seed) before calling it a gain '
        'or a loss.'
    )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--task', choices=sorted(TASKS), default='det')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--data', type=Path, default=Path('data/digits_few'))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    started, task, console = time.time(), TASKS[args.task], Console()
    write_digits(args.data, **SCENES)
    arms = make_arms(task, args)
    run_arms(arms)
    curves = {arm.title: arm.curve() for arm in arms}

    from tools.demo_pictures import draw_all

    pictures = draw_all(folder_of(args), arms, curves, task.name)
    show_table(console, task, curves)
    print('Pictures:', *pictures, sep='\n  ')
    print(f'{time.time() - started:.0f} s in all')


if __name__ == '__main__':
    main()
