"""The console script: ``mmselfdistill COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from rich.console import Console
from rich.table import Table

from mmselfdistill.commands import check, compare, control, extract, inspect, train

GFL = 'mmdet::gfl/gfl_r50_fpn_1x_coco'
# module, what it does, an example
COMMANDS = {
    'inspect': (inspect, 'show what will be distilled of a config', GFL),
    'check': (check, 'check that student and teacher compute the same', GFL),
    'train': (
        train,
        'train a config, self-distilled by a flag',
        f'{GFL} --self-distill ema',
    ),
    'control': (
        control,
        'write the plain runs to compare a distilled one with',
        'my_config.py --cost 1.35',
    ),
    'compare': (
        compare,
        'show several runs in one table and one picture',
        'work_dirs/ema work_dirs/plain',
    ),
    'extract': (
        extract,
        'write the teacher in a checkpoint as a stock checkpoint',
        'work_dirs/ema/epoch_12.pth teacher.pth',
    ),
}


def overview() -> Table:
    """Return the commands, each with what it does and an example."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style='bold')
    for column in ('command', 'does', 'example'):
        table.add_column(column, overflow='fold')
    for name, (_, does, example) in COMMANDS.items():
        table.add_row(name, does, f'mmselfdistill {name} {example}')
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: If something is wrong with what was given, or a model cannot be
            distilled, in a message. An error in a run of `train` is raised as it is.
    """
    parser = argparse.ArgumentParser(
        prog='mmselfdistill', description='Self-distillation for detectors, segmentors.'
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name, (module, does, example) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=does,
            description=f'{does[0].upper()}{does[1:]}.',
            epilog=f'Example: mmselfdistill {name} {example}',
        )
        module.add_arguments(command)
    args = parser.parse_args(arguments)
    if args.command is None:
        Console().print(overview())
        return
    with warnings.catch_warnings():
        # MMEngine imports it wherever it looks for a package
        warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
        try:
            COMMANDS[args.command][0].run(args)
        except (OSError, RuntimeError, ValueError) as error:
            if args.command == 'train':
                raise
            if isinstance(error, BrokenPipeError):
                # `| head` has read enough: nothing is left to be flushed to it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return
            raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
