"""What training and evaluating share: finding the config, building the Runner."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmselfdistill.zoo import find_config, read_file


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every launching tool has."""
    parser.add_argument(
        'config',
        help='path of a config, or its name in a zoo, with or without .py: '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    )
    parser.add_argument('--work-dir', help='where logs and checkpoints are written')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of the job are started. Defaults to none',
    )
    # torch.distributed.launch passes this; torchrun sets LOCAL_RANK itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, as key=value pairs: '
        'train_cfg.max_epochs=6 default_hooks.self_distill.loss_weight=0.5 '
        'key="[a,b]" key="[(a,b),(c,d)]" (quoted, without spaces)',
    )


def set_local_rank(args: argparse.Namespace) -> None:
    """Make the local rank of the command line known to MMEngine."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def load_config(args: argparse.Namespace) -> Config:
    """Load the config that the command line names, with launcher and work dir.

    The work dir is, in this order: `--work-dir`, the config's own, and
    `work_dirs/<name of the config>`.
    """
    path = find_config(args.config)
    cfg = read_file(path)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    return cfg


def build_runner(cfg: Config) -> Any:
    """Build the Runner of a config, on the CPU's processes too.

    MMEngine's `pytorch` launcher asks for a CUDA device whatever the backend, and
    wraps the model for one. With the backend gloo and no CUDA device in sight, the
    process group is therefore joined here, and the wrapper told that there is none.
    """
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend')
    on_cpu = backend == 'gloo' and not torch.cuda.is_available()
    if cfg.launcher == 'pytorch' and on_cpu:
        torch.distributed.init_process_group(backend)
        cfg.model_wrapper_cfg = {
            'type': 'MMDistributedDataParallel',
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
            'broadcast_buffers': False,
            **cfg.get('model_wrapper_cfg', {}),
            'device_ids': None,
        }
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
