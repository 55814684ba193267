"""What scripts in this folder take from the package to launch a run."""

from __future__ import annotations

import argparse

from mmselfdistill.commands.launching import (
    add_common_arguments,
    build_runner,
    load_config,
    set_local_rank,
)

__all__ = ['add_common_arguments', 'build_runner', 'load_config', 'parse_args']


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and make the local rank known to MMEngine."""
    args = parser.parse_args()
    set_local_rank(args)
    return args
