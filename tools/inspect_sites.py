"""Show what will be distilled of a model, without data or a GPU.

    python tools/inspect_sites.py CONFIG [--cfg-options ...]

The config is a path or a name in a zoo. Its own hook is shown where it has one,
otherwise the defaults. The model is built with random weights and
makes one training step on two images of noise, with a teacher equal to it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from typing import Any, Callable

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from torch.utils.flop_counter import FlopCounterMode

from mmselfdistill.core.distiller import Distiller, build_distiller
from mmselfdistill.core.report import describe
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.hooks import EMATeacherHook
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.testing.inputs import make_batch, raw_batch
from mmselfdistill.testing.models import (
    build,
    enter,
    prepared,
    size_of,
    wants_masks,
)
from mmselfdistill.testing.unlabeled import Same
from mmselfdistill.zoo import (
    check_scope,
    pop_self_distill,
    read_config,
    zoo_folder,
)


def hook_of(cfg: Config) -> DistillHook:
    """Return a config's hook, or the default."""
    hook_cfg = pop_self_distill(cfg)
    return HOOKS.build(hook_cfg) if hook_cfg else EMATeacherHook()


def distiller_of(hook: DistillHook, model: Any, raw: dict[str, Any]) -> Distiller:
    """Return the distiller that a hook would build, with a teacher.

    Args:
        hook (DistillHook): The hook.
        model (BaseModel): The model.
        raw (dict): Stands for a batch of the images without labels.
    """
    source = hook.unlabeled
    bare = {**raw, 'data_samples': without_labels(raw['data_samples'])}
    unlabeled = source and dict(
        batches=Same(bare),
        weight=source['weight'],
        view=source['view'],
        statistics=source.get('statistics', False),
    )
    distiller = build_distiller(
        model,
        hook.terms,
        hook.schedule,
        hook.loss_weight,
        hook.seams,
        unlabeled,
        view=hook.view,
        task_weight=hook.task_weight,
        teacher_norm=hook.teacher_norm,
    )
    distiller.teacher = make_teacher(model)
    return distiller


def operations(run: Callable[[], Any]) -> int:
    """Count the operations of convolutions and matrix products, backward too."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def step(model: Any, batch: dict[str, Any]) -> None:
    """Make the forward and backward passes of an iteration."""
    losses = model(**batch, mode='loss')
    model.parse_losses(losses)[0].backward()


def inspect(cfg: Config, size: int | None) -> str:
    """Return what is distilled of a config's model, and what is not.

    Raises:
        ValueError: If a term is wrong, no family covers the model, or it makes no
            training step here.
    """
    zoo = check_scope(cfg)
    model_cfg = prepared(cfg.model, zoo_folder(zoo), few={})
    enter(zoo, model_cfg)
    size = size or size_of(model_cfg)
    model = build(zoo, model_cfg, size)
    hook, masks = hook_of(cfg), wants_masks(cfg)
    raw = raw_batch(zoo, model, model_cfg, size, masks)
    distiller = distiller_of(hook, model, raw)
    model.train()
    batch = make_batch(zoo, model, model_cfg, size, masks)
    try:
        stock = operations(lambda: step(model, batch))
    except Exception as error:
        first = str(error).strip().partition('\n')[0]
        raise ValueError(
            f'{type(model).__name__} makes no training step on this machine, without '
            f'self-distillation: {type(error).__name__}: {first}'
        ) from error
    distiller.attach()
    distiller.progress = distiller.run_progress = 0.5  # past a warm-up
    step(model, batch)  # in the first iteration, every term is tried besides
    ours = operations(lambda: step(model, batch))
    return '\n'.join([describe(distiller), *_more(distiller, ours, stock, size)])


def _more(distiller: Distiller, ours: int, stock: int, size: int) -> list[str]:
    sites = ', '.join(site.name for site in distiller.labeled.plan.sites) or 'none'
    repeated = [seam.path for seam in distiller.labeled.plan.seams if seam.repeat]
    return [
        f'Sites: {sites}, and any module by its path.',
        f'The teacher repeats: {", ".join(repeated)}.',
        f"Self-distillation is {(ours - stock) / ours:.0%} of a step's operations "
        f'({ours / stock:.2f} of stock): of convolutions and matrix products, in the '
        f'middle of a run, with 2 images of {size} x {size} pixels.',
    ]


def main() -> None:
    """Inspect the config of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('config', help='path of a config, or its name in a zoo')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument(
        '--size', type=int, help="side of the images. Defaults to the model's, or 320"
    )
    args = parser.parse_args()
    cfg = read_config(args.config, args.cfg_options)
    warnings.simplefilter('ignore')
    MMLogger.get_instance('inspect', log_level='ERROR')
    try:
        # models talk while they are built
        with contextlib.redirect_stdout(io.StringIO()):
            found = inspect(cfg, args.size)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(found)


if __name__ == '__main__':
    main()
