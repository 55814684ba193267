"""Our update of a running average against MMEngine's, on the same weights."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from rich.console import Console
from rich.table import Table
from torch import nn

from mmselfdistill.core.teacher import Average, make_teacher
from mmselfdistill.testing.models import build, enter
from tools.benchmarks.iterations import in_turns, measured
from tools.benchmarks.results import Results, in_words, ratio
from tools.benchmarks.subjects import device, device_name

BACKBONES = dict(
    resnet50=dict(type='mmdet.ResNet', depth=50),
    swin_tiny=dict(type='mmdet.SwinTransformer'),
)
MOMENTUM = 0.999
# updates in one measurement: one alone is too short
UPDATES = 10


class Averages:
    """Both averages of one model.

    Args:
        model (nn.Module): The student.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ours = Average(make_teacher(model), model)
        self.theirs = ExponentialMovingAverage(model, momentum=1 - MOMENTUM)
        self.theirs.update_parameters(model)  # the first copies

    def run(self, kind: str) -> tuple[float, Any]:
        """Make updates of one kind; return the seconds of one, and None."""
        with measured() as result:
            for _ in range(UPDATES):
                if kind == 'ours':
                    self.ours.update(MOMENTUM)
                else:
                    self.theirs.update_parameters(self.model)
        return result[0] / UPDATES, None


def measure_ema(args: argparse.Namespace, console: Console) -> None:
    """Measure both updates of each backbone, and print how much faster ours is."""
    enter('mmdet', {})
    results = Results(args.out)
    table = Table(title=f'One update of a running average on {device_name()}')
    for name in ('backbone', "MMEngine's, ms", 'ours, ms', "MMEngine's / ours"):
        table.add_column(
            name, justify='right' if '/' in name or 'ms' in name else 'left'
        )
    for name, cfg in BACKBONES.items():
        model: Any = build('mmdet', cfg, 224).to(device())
        seconds, _ = in_turns(('theirs', 'ours'), Averages(model).run, args.rounds)
        settings = dict(mode='ema', model=name, updates=UPDATES, rounds=args.rounds)
        settings.update(device=device_name())
        record = results.add(settings, seconds=seconds)
        middle = {k: f'{1000 * statistics.median(v):.2f}' for k, v in seconds.items()}
        times = in_words(ratio(record, 'theirs', 'ours'))
        table.add_row(name, middle['theirs'], middle['ours'], times)
    console.print(table)
    if not torch.cuda.is_available():
        console.print('On a CPU, the arithmetic is most of it; on CUDA, the calls are.')
