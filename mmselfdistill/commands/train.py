"""Train a detector or a segmentor, self-distilled or not.

The frameworks' own `tools/train.py` train a config that carries a hook of
mmselfdistill just as well. This command takes zoo names too, adds the hook to any
config by a flag, and serves MMDetection and MMSegmentation alike.

    mmselfdistill train mmdet::gfl/gfl_r50_fpn_1x_coco --self-distill generation
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, find_latest_checkpoint

from mmselfdistill.commands.launching import (
    add_common_arguments,
    build_runner,
    load_config,
    set_local_rank,
)
from mmselfdistill.commands.stretch import counts_epochs
from mmselfdistill.errors import nearest
from mmselfdistill.hooks.state import STATE_KEY
from mmselfdistill.names import name_of
from mmselfdistill.zoo import (
    find_self_distill,
    merge_options,
    pop_self_distill,
)

SCHEMES = ('generation', 'ema')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_common_arguments(parser)
    parser.add_argument(
        '--self-distill',
        metavar='{generation,ema,CHECKPOINT}',
        help='distil with GenerationHook, EMATeacherHook, or SelfDistillHook with '
        'the model in this checkpoint (path or URL) as teacher. Replaces what the '
        'config says of self-distillation',
    )
    parser.add_argument(
        '--interval',
        type=int,
        help='with --self-distill generation: epochs (or iterations, where the '
        "config's loop counts those) of a generation; the run keeps its length",
    )
    parser.add_argument(
        '--generations',
        type=int,
        help='with --self-distill generation: number of generations, each as long '
        "as the config's own run. Defaults to 2 unless --interval is given",
    )
    parser.add_argument(
        '--student',
        choices=['continue', 'reinit'],
        help='with --self-distill generation: whether a new generation goes on from '
        'the old weights or from fresh ones. Defaults to continue',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the latest one '
        'in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train with automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )


def self_distill_hook(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Return the hook's config that `--self-distill` and its company ask for.

    Raises:
        SystemExit: Flags that do not go together, or a teacher that is neither
            a scheme, a file, nor a URL.
    """
    given = {
        name: getattr(args, name)
        for name in ('interval', 'generations', 'student')
        if getattr(args, name) is not None
    }
    if args.self_distill == 'generation':
        if 'interval' not in given:
            given.setdefault('generations', 2)
        elif 'generations' not in given:
            given['by_epoch'] = counts_epochs(cfg.train_cfg)
        return dict(type='mmselfdistill.GenerationHook', **given)
    if given:
        flags = ', '.join(f'--{name}' for name in given)
        raise SystemExit(
            f'{flags}: only together with --self-distill generation, '
            f'but --self-distill is {args.self_distill!r}.'
        )
    if args.self_distill == 'ema':
        return dict(type='mmselfdistill.EMATeacherHook')
    teacher = args.self_distill
    # a resumed run has its teacher in its own checkpoint
    needed = args.resume is None and '://' not in teacher
    if needed and not Path(teacher).is_file():
        raise SystemExit(
            f'--self-distill: {teacher!r} is no checkpoint that exists and no scheme; '
            f'{nearest(teacher, SCHEMES)}.'
        )
    return dict(type='mmselfdistill.SelfDistillHook', teacher=teacher)


def use_amp(cfg: Config) -> None:
    """Turn mixed precision on in place, unless the config has it already."""
    kind = name_of(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise SystemExit(
            f'--amp: needs optim_wrapper.type OptimWrapper, but the config has {kind}.'
        )
    if kind == 'OptimWrapper':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


def use_auto_scale_lr(cfg: Config) -> None:
    """Turn learning-rate scaling on in place."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise SystemExit(
            '--auto-scale-lr: needs auto_scale_lr=dict(base_batch_size=...) in the '
            'config, the total batch size that its learning rate is meant for.'
        )
    cfg.auto_scale_lr.enable = True


def prepare(args: argparse.Namespace) -> Config:
    """Return the config of the run that the command line asks for."""
    cfg = load_config(args)
    if args.self_distill is not None:
        hook = self_distill_hook(args, cfg)
        had = name_of(hook['type']) in pop_self_distill(cfg)
        cfg.setdefault('default_hooks', {})
        cfg.default_hooks.self_distill = hook
        kind = args.self_distill if args.self_distill in SCHEMES else 'teacher'
        work_dir = cfg.work_dir.rstrip('/')
        # the config that such a run has written names its work dir already
        if args.work_dir is None and not (had and work_dir.endswith(f'_{kind}')):
            # A plain run of the same config must not be resumed or overwritten.
            cfg.work_dir = f'{work_dir}_{kind}'
    elif any(x is not None for x in (args.interval, args.generations, args.student)):
        raise SystemExit(
            '--interval, --generations, --student: only together with '
            '--self-distill generation.'
        )
    merge_options(cfg, args.cfg_options)
    try:
        find_self_distill(cfg)
    except ValueError as error:  # a hook is misspelt
        raise SystemExit(str(error)) from error
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return cfg


def check_resumed(cfg: Config) -> None:
    """See that a run which was taught is resumed with a hook.

    Raises:
        SystemExit: If it is not: it would go on without its teacher.
    """
    if not cfg.get('resume') or find_self_distill(cfg):
        return
    path = cfg.get('load_from') or find_latest_checkpoint(cfg.work_dir)
    if path is None or not Path(path).expanduser().is_file():
        return
    # as the run will load it
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', None)
    state = checkpoint.get(STATE_KEY) if isinstance(checkpoint, dict) else None
    if isinstance(state, dict):
        raise SystemExit(
            f'resume: {path} was written with {state.get("hook")}, and this run has '
            'no hook of mmselfdistill; repeat --self-distill, or take the config that '
            'had the hook. To go on without the teacher, add to that --cfg-options '
            'default_hooks.self_distill.loss_weight=0.'
        )


def run(args: argparse.Namespace) -> None:
    """Train as the command line says."""
    set_local_rank(args)
    cfg = prepare(args)
    check_resumed(cfg)
    build_runner(cfg).train()
