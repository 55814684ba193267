"""The identity check of a config's model, on random weights."""

from __future__ import annotations

import argparse
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmselfdistill.commands.inspect import no_step
from mmselfdistill.commands.launching import add_cfg_options
from mmselfdistill.commands.quiet import quietly
from mmselfdistill.testing import Report, check_identity
from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.unlabeled import check_unlabeled
from mmselfdistill.zoo import find_self_distill, read_config


def check(cfg: Config) -> Report:
    """Check the model of a config with random weights, on two images of noise.

    Raises:
        ValueError: If the config is of no zoo, its hook's settings are wrong, or the
            model makes no training step here.
        RuntimeError: If the teacher cannot repeat what the model does.
    """
    builder = Builder(cfg)
    hook_cfg = find_self_distill(cfg)
    settings: dict[str, Any] = {}
    unlabeled = None
    if hook_cfg:
        hook = HOOKS.build(hook_cfg)
        settings = dict(
            terms=hook.terms, seams=hook.seams, loss_weight=hook.loss_weight
        )
        unlabeled = hook.unlabeled
    try:
        size = builder.first_size()
    except Exception as error:
        raise no_step(builder.cfg['type'], error) from error
    model, batch = builder.calibrated(size)
    # of weight 0: terms that are for these images alone may be there
    none = None if unlabeled is None else dict(weight=0)
    report = check_identity(model, batch, unlabeled=none, **settings)
    if unlabeled is not None and unlabeled['weight'] > 0:
        raw = builder.raw_unlabeled(model, size)
        sure = unlabeled['confidence']
        report.unlabeled = check_unlabeled(model, raw, batch, sure, **settings)
    return report


def written(report: Report) -> str:
    """Write a report for people."""
    lines = [f'{report.family}: equal weights, other weights, gradient at the student']
    tried = report.tried()
    width = max([10, *map(len, tried)])
    for name, term in tried.items():
        values = f'{term.equal:.1e} {term.apart:.1e} {term.gradient:.1e}'
        lines.append(f'{name:{width}} {values}  {" ".join(term.tensors)}')
    lines += [f'Repeated too: {path}' for path in report.found]
    lines += [f'Not distilled: {name}: {why}' for name, why in report.skipped.items()]
    if report.silent:
        lines.append(f'Parts that move no term: {", ".join(report.silent)}')
    lines += [f'PROBLEM: {problem}' for problem in report.problems]
    passed = 'passed' if tried else 'Nothing was tried: every term has a weight of 0'
    lines.append('failed' if report.problems else passed)
    return '\n'.join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='path of a config, or its name in a zoo')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Check the config of the command line.

    Raises:
        SystemExit: If its model is not distilled correctly, or no term has a weight.
    """
    cfg = read_config(args.config, args.cfg_options)
    try:
        with quietly():
            report = check(cfg)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    print(written(report))
    if report.problems or not report.tried():
        raise SystemExit(1)
