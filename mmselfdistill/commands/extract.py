"""Write the teacher inside a checkpoint as a checkpoint of the stock framework.

The framework's own tools, and `--self-distill`, take the result like any checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

# Importing it lets PyTorch read the types that MMEngine saves, and no others.
from mmselfdistill.compat import load_checkpoint, why_unreadable
from mmselfdistill.hooks.state import STATE_KEY


def read_teacher(path: Path) -> dict[str, Any]:
    """Return the teacher inside a checkpoint as a checkpoint of its own.

    Args:
        path: A checkpoint that was saved while self-distilling.

    Returns:
        `dict(meta=..., state_dict=...)` with the keys of the stock model, which a
        stock framework loads strictly.

    Raises:
        SystemExit: The file is missing or no checkpoint, was saved without
            self-distillation, or has no teacher yet.
    """
    if not path.is_file():
        what = 'is a folder: name a file in it' if path.is_dir() else 'does not exist'
        raise SystemExit(f'CHECKPOINT: {str(path)!r} {what}.')
    try:
        checkpoint = load_checkpoint(path)
    except Exception as error:
        raise SystemExit(
            f'CHECKPOINT: {str(path)!r} is no checkpoint that can be read: '
            f'{why_unreadable(path, error)}'
        ) from error
    state = checkpoint.get(STATE_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not {'teacher', 'hook'} <= state.keys():
        raise SystemExit(
            f'CHECKPOINT: {str(path)!r} was saved without self-distillation: it has '
            f'no {STATE_KEY!r}, or not what a hook saves there.'
        )
    if state['teacher'] is None:
        raise SystemExit(
            f'CHECKPOINT: {str(path)!r} has no teacher: it is from the first '
            f'generation of {state["hook"]}, which trains without one. Its own '
            'state_dict is what teaches the next generation, and is stock already.'
        )
    return dict(meta=checkpoint.get('meta', {}), state_dict=state['teacher'])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', type=Path, help='saved while self-distilling')
    parser.add_argument('out', type=Path, help='the file to write')


def run(args: argparse.Namespace) -> None:
    """Write the teacher in the checkpoint of the command line."""
    if args.out.exists():
        # `extract work_dirs/ema/*.pth` would write over the newer of two checkpoints
        raise SystemExit(
            f'OUT: {str(args.out)!r} exists: name a new file, or remove it'
        )
    teacher = read_teacher(args.checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f'{args.out.name}.partial')
    try:
        torch.save(teacher, partial)
        partial.replace(args.out)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise SystemExit(
            f'OUT: {str(args.out)!r} cannot be written: {error}'
        ) from error
    print(f'{args.out}: {len(teacher["state_dict"])} tensors of the teacher')
