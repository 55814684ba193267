"""Train a small model on digits with and without self-distillation, and compare.

Both arms have the same total length, data, seed and settings: two generations of
self-distillation, and one plain run with its learning-rate schedule stretched to
that length. The table and the pictures say what was measured, gain or not.

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
    generations: str
    metric: str  # its key in the log
    name: str


TASKS = {
    'det': Task(
        plain='retinanet_r18_fpn_100e_digits',
        generations='retinanet_r18_fpn_generation-2x50e_digits',
        metric='coco/bbox_mAP',
        name='box AP',
    ),
    'seg': Task(
        plain='deeplabv3plus_r18-d8_1xb8-3000_digits-64x64',
        generations='deeplabv3plus_r18-d8_1xb8-generation-2x1500_digits-64x64',
        metric='mIoU',
        name='mIoU',
    ),
}
SCENES = dict(train=240, val=400, size=64, seed=0)


def make_arms(task: Task, args: argparse.Namespace) -> list[Arm]:
    """Return both arms, the self-distilled one first."""
    arms = []
    for title, name in (
        ('two generations', task.generations),
        ('plain', task.plain),
    ):
        cfg = read_config(f'mmselfdistill::digits/{name}', None)
        with_data(cfg, args.data, args.seed)
        folder = args.work_dir / args.task / title.replace(' ', '_')
        arms.append(Arm(title, cfg, folder, task.metric))
    return arms


def show_table(console: Console, task: Task, curves: list[Curve]) -> None:
    """Print the metric and the cost of each generation and of the plain run."""
    distilled, plain = curves
    middle = distilled.length // 2
    table = Table(title=f'Digits, {task.name} on the validation scenes')
    columns = ('', 'teacher', distilled.unit, task.name, 's/iter.')
    for i, column in enumerate(columns):
        table.add_column(column, justify='left' if i < 2 else 'right')
    rows = (
        ('generation 1', 'none', distilled, 0, middle),
        ('generation 2', 'generation 1', distilled, middle, distilled.length),
        ('plain, same length', 'none', plain, 0, plain.length),
    )
    for title, teacher, curve, begin, end in rows:
        seconds = f'{curve.seconds(begin, end):.3f}'
        score = f'{curve.score_at(end):.1f}'
        table.add_row(title, teacher, f'{begin + 1}-{end}', score, seconds)
    console.print(table)
    console.print(verdict(task, distilled, plain))


def verdict(task: Task, distilled: Curve, plain: Curve) -> str:
    """Return in words what the table says, gain or not."""
    last, middle = distilled.length, distilled.length // 2
    gain = distilled.score_at(last) - plain.score_at(last)
    longer = plain.score_at(last) - distilled.score_at(middle)
    # side by side: whatever else the machine did slowed both
    cost = distilled.seconds(middle, last) / plain.seconds(middle, last)
    return (
        f'{gain:+.1f} {task.name} against the plain run of the same total length. This '
        'is one seed: repeat with other seeds (--seed) before calling it a gain or a '
        'loss.\n'
        f'Without a teacher, twice the length gains {longer:+.1f} {task.name}. '
        'Generations are meant for where that is near 0.\n'
        f'An iteration with the teacher took {cost:.2f} times one of the plain run '
        '(medians).'
    )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--task', choices=sorted(TASKS), default='det')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--data', type=Path, default=Path('data/digits'))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    started, task, console = time.time(), TASKS[args.task], Console()
    write_digits(args.data, **SCENES)
    arms = make_arms(task, args)
    run_arms(arms)
    curves = [arm.curve() for arm in arms]

    from tools.demo_pictures import draw_all

    pictures = draw_all(args.work_dir / args.task, arms, curves, task.name)
    show_table(console, task, curves)
    print('Pictures:', *pictures, sep='\n  ')
    print(f'{time.time() - started:.0f} s in all')


if __name__ == '__main__':
    main()
