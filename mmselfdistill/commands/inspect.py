"""Show what will be distilled of a model, without data or a GPU.

The config is a path or a name in a zoo. Its own hook is shown where it has one,
otherwise the defaults. The model is built with random weights and
makes one training step on two images of noise, with a teacher equal to it.
"""

from __future__ import annotations

import argparse
import copy
from math import gcd
from pathlib import Path
from typing import Any, Callable, NamedTuple

from mmengine.config import Config
from mmengine.registry import HOOKS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmselfdistill.commands.launching import add_cfg_options
from mmselfdistill.commands.quiet import quietly
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.report import describe
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.errors import check_whole
from mmselfdistill.hooks import EMATeacherHook, SelfDistillHook
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.hooks.unlabeled import arguments_of
from mmselfdistill.testing.builder import Builder, step
from mmselfdistill.testing.identity import always
from mmselfdistill.testing.models import size_of
from mmselfdistill.testing.unlabeled import Same
from mmselfdistill.zoo import find_self_distill, read_config


class Subject(NamedTuple):
    """A model of a config with random weights, and what its hook would distil."""

    model: Any
    distiller: Distiller  # with a teacher, not attached
    hook: DistillHook  # the config's, or a default one
    default: bool  # whether the config has none
    batch: dict[str, Any]  # as it leaves the preprocessor
    size: int  # side of its images, in pixels


def subject_of(cfg: Config, size: int | None) -> Subject:
    """Build a config's model and distiller, on two images of noise.

    Args:
        cfg (Config): Of the run.
        size (int, optional): Side of the images. Defaults to None: the model's own.

    Raises:
        ValueError: If the config is of no zoo, or its hook's settings are wrong.
    """
    builder = Builder(cfg, few={})
    size = size_of(builder.cfg) if size is None else check_whole('--size', size, 1)
    hook_cfg = find_self_distill(cfg)
    try:
        model = builder.model(size)
    except Exception as error:
        raise ValueError(
            f'model: it cannot be built: {type(error).__name__}: {error}'
        ) from error
    hook = HOOKS.build(hook_cfg) if hook_cfg else EMATeacherHook()
    raw = builder.raw_batch(model, size)
    labeled = (cfg.get('train_dataloader') or {}).get('batch_size')
    bare: dict[str, Any] = {}
    if hook.unlabeled:
        bare = builder.raw_unlabeled(model, size)
        bare['data_samples'] = without_labels(bare['data_samples'])
        raw, bare = in_ratio(raw, bare, labeled, hook.unlabeled['batch_size'])
    distiller = distiller_of(hook, model, bare)
    model.train()
    batch = model.data_preprocessor(raw, True)
    return Subject(model, distiller, hook, not hook_cfg, batch, size)


def in_ratio(
    raw: dict[str, Any],
    bare: dict[str, Any],
    labeled: int | None,
    unlabeled: int | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return batches with and without labels, in the ratio of the run's.

    Args:
        raw (dict): Two images with labels.
        bare (dict): Two without.
        labeled (int, optional): Images with labels of the run's batch.
        unlabeled (int, optional): Those without.
    """
    if not labeled or not unlabeled or not isinstance(raw['inputs'], list):
        return raw, bare
    shared = gcd(labeled, unlabeled)
    # a norm may need two images, if the run gives it as many
    least = -(-2 // (labeled // shared)), -(-min(unlabeled, 2) // (unlabeled // shared))
    counts = [count // shared * max(least) for count in (labeled, unlabeled)]
    ours, others = (_repeated(*pair) for pair in zip((raw, bare), counts))
    return ours, others


def _repeated(batch: dict[str, Any], count: int) -> dict[str, Any]:
    inputs, samples = batch['inputs'], batch['data_samples']
    chosen = [i % len(inputs) for i in range(count)]
    # the preprocessor writes into each
    copies = [copy.deepcopy(samples[i]) for i in chosen]
    return {**batch, 'inputs': [inputs[i] for i in chosen], 'data_samples': copies}


def distiller_of(hook: DistillHook, model: Any, bare: dict[str, Any]) -> Distiller:
    """Return the distiller that a hook would build, with a teacher.

    Args:
        hook (DistillHook): The hook.
        model (BaseModel): The model.
        bare (dict): Stands for a batch of the images without labels.
    """
    unlabeled = hook.unlabeled and arguments_of(hook.unlabeled, Same(bare))
    distiller = hook.distiller_of(model, unlabeled)
    distiller.teacher = make_teacher(model)
    return distiller


def operations(run: Callable[[], Any]) -> int:
    """Count the operations of convolutions and matrix products, backward too."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def first_step(subject: Subject) -> None:
    """Make a training step without self-distillation.

    Raises:
        ValueError: If the model makes none on this machine.
    """
    try:
        step(subject.model, subject.batch)
    except Exception as error:
        raise no_step(type(subject.model).__name__, error) from error


def no_step(model: str, error: Exception) -> ValueError:
    """Return what is said of a model that makes no training step here."""
    first = str(error).strip().partition('\n')[0]
    return ValueError(
        f'{model} makes no training step on this machine, without self-distillation: '
        f'{type(error).__name__}: {first}'
    )


def inspect(cfg: Config, size: int | None) -> str:
    """Return what is distilled of a config's model, and what is not.

    Raises:
        ValueError: If a term is wrong, no family covers the model, or it makes no
            training step here.
    """
    subject = subject_of(cfg, size)
    distiller = subject.distiller
    stock = operations(lambda: first_step(subject))
    terms = distiller.terms
    always(distiller)
    distiller.attach()
    # in the first iteration, every term is tried besides
    step(subject.model, subject.batch)
    ours = operations(lambda: step(subject.model, subject.batch))
    distiller.terms = terms
    # where the teacher rests, a step is a stock one
    ours = stock + (ours - stock) // subject.hook.every
    lines = [describe(distiller), *_more(subject, ours, stock)]
    if subject.default:
        lines.insert(0, 'The config has no hook: these are the defaults.')
    return '\n'.join(lines)


def _more(subject: Subject, ours: int, stock: int) -> list[str]:
    plan, size = subject.distiller.labeled.plan, subject.size
    inputs = subject.batch['inputs']
    count = len(inputs) if isinstance(inputs, (list, Tensor)) else 2
    sites = ', '.join(site.name for site in plan.sites) or 'none'
    repeated = [seam.path for seam in plan.seams if seam.repeat]
    every = subject.hook.every
    when = 'while all terms are computed'
    if every > 1:
        when = f'in the mean of {every} steps, in one of which all terms are computed'
    source = subject.hook.unlabeled
    lines = [
        f'Sites: {sites}, and any module by its path.',
        f'The teacher repeats, as far as a term needs it: {", ".join(repeated)}.',
        f"Self-distillation is {(ours - stock) / ours:.0%} of a step's operations "
        f'({ours / stock:.2f} of stock): of convolutions and matrix products, '
        f'{when}, with {count} images of {size} x {size} pixels.',
    ]
    if source is not None:
        lines.insert(0, f'Images without labels come from: {source["data"]}.')
    return [*lines, *_not_here(subject.hook)]


def _not_here(hook: DistillHook) -> list[str]:
    """Say which files a run of the hook will look for, and are not on this machine."""
    data = (hook.unlabeled or {}).get('data')
    teacher = hook.teacher if isinstance(hook, SelfDistillHook) else None
    lines = []
    folder = data if isinstance(data, str) and '://' not in data else None
    if folder and not Path(folder).expanduser().is_dir():
        lines.append(f'Not on this machine: the folder {data!r} (unlabeled.data).')
    if teacher and '://' not in teacher and not Path(teacher).expanduser().is_file():
        lines.append(f'Not on this machine: the file {teacher!r} (teacher).')
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='path of a config, or its name in a zoo')
    add_cfg_options(parser)
    parser.add_argument(
        '--size', type=int, help="side of the images. Defaults to the model's, or 320"
    )


def run(args: argparse.Namespace) -> None:
    """Inspect the config of the command line."""
    cfg = read_config(args.config, args.cfg_options)
    with quietly():
        found = inspect(cfg, args.size)
    print(found)
