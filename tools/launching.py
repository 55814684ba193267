"""What `train.py` and `test.py` share: finding the config, building the Runner."""

from __future__ import annotations

import argparse
import difflib
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import get_installed_path, is_installed

import mmselfdistill.hooks  # also makes `mmseg::` resolve on either stack


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every launching tool has."""
    parser.add_argument(
        'config',
        help='path of a config, or its name in a zoo, with or without .py: '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    )
    parser.add_argument('--work-dir', help='where logs and checkpoints are written')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, as key=value pairs: '
        'train_cfg.max_epochs=6 default_hooks.self_distill.loss_weight=0.5 '
        'key="[a,b]" key="[(a,b),(c,d)]" (quoted, without spaces)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of the job are started. Defaults to none',
    )
    # torch.distributed.launch passes this; torchrun sets LOCAL_RANK itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and make the local rank known to MMEngine."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """Load the config that the command line names, with launcher and work dir.

    The work dir is, in this order: `--work-dir`, the config's own, and
    `work_dirs/<name of the config>`.
    """
    path = find_config(args.config)
    cfg = Config.fromfile(path)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    return cfg


def pop_self_distill(cfg: Config) -> dict[str, Any] | None:
    """Take the hook of self-distillation out of a config, whatever its key.

    Returns:
        dict | None: Its config, if there is one.
    """
    found: dict[str, Any] | None = None
    for key, hook in list(cfg.get('default_hooks', {}).items()):
        if _is_ours(hook):
            found = cfg.default_hooks.pop(key)
    for hook in list(cfg.get('custom_hooks') or []):
        if _is_ours(hook):
            found = hook
            cfg.custom_hooks.remove(hook)
    return found


def _is_ours(hook: Any) -> bool:
    kind = (hook or {}).get('type', '')
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2] in mmselfdistill.hooks.__all__


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


def find_config(name: str) -> Path:
    """Return the file of a config given by path or by name in a zoo.

    Args:
        name: `path/to/config.py`, or `<package>::<family>/<config>` with or
            without `.py`, where the package is one that MMEngine knows
            (`mmdet`, `mmseg`, ...) or `mmselfdistill`.

    Raises:
        SystemExit: There is no such config; the message lists the nearest ones.
    """
    if '::' not in name:
        path = Path(name)
        root, written = path.parent, name
    else:
        package, _, relative = name.partition('::')
        root = zoo_folder(package)
        path = root / relative
        written = f'{package}::{relative}'
    if path.is_file():
        return path
    if path.suffix != '.py' and path.with_name(f'{path.name}.py').is_file():
        return path.with_name(f'{path.name}.py')
    raise SystemExit(f'config: {written!r} does not exist. {_nearest(path, root)}')


def zoo_folder(package: str) -> Path:
    """Return the folder that holds the configs of a package."""
    if package == 'mmselfdistill':
        # In a checkout as in the wheel, tools/ and configs/ are neighbours.
        return Path(__file__).resolve().parent.parent / 'configs'
    if package not in MODULE2PACKAGE:
        raise SystemExit(
            f'config: no package {package!r} with configs is known. '
            f'Known: {", ".join(sorted(MODULE2PACKAGE))}.'
        )
    distribution = MODULE2PACKAGE[package]
    if not is_installed(distribution):
        raise SystemExit(
            f'config: {package!r} is not installed, which a config named '
            f'{package}::... needs. Install it with `pip install {distribution}`.'
        )
    return Path(get_installed_path(distribution)) / '.mim' / 'configs'


def _nearest(path: Path, root: Path) -> str:
    """Return a sentence that names the configs nearest to a missing one."""
    if not root.is_dir():
        return f'Nor does the folder {root}.'
    files = {file.stem: file for file in root.rglob('*.py')}
    names = difflib.get_close_matches(path.stem, files, n=3, cutoff=0.5)
    if not names:
        return f'No config under {root} has a similar name.'
    nearest = [files[name].relative_to(root).as_posix() for name in names]
    return f'Nearest under {root}: {", ".join(nearest)}.'
