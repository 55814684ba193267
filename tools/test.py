"""Evaluate a detector or a segmentor on the test set of its config.

Any checkpoint will do, self-distilled or not: what is evaluated is its student. To
evaluate the teacher inside, take it out with `mmselfdistill extract` first.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config

from mmselfdistill.commands.launching import (
    add_common_arguments,
    build_runner,
    load_config,
    set_local_rank,
)
from mmselfdistill.zoo import merge_options, scope_of


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool's command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='path or URL of the checkpoint')
    parser.add_argument(
        '--out',
        help='where predictions are written: a .pkl file for a detector or classifier, '
        'a folder of label maps for a segmentor',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='folder in which predictions are painted')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which --show shows an image. Defaults to 2',
    )
    parser.add_argument(
        '--tta', action='store_true', help='average over augmented copies of an image'
    )
    return parser


def paint_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Let the config's visualization hook show or paint predictions, in place."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit(
            '--show, --show-dir: need default_hooks.visualization in the config.'
        )
    if scope_of(cfg) == 'mmpretrain':
        hook.enable = True
    else:
        hook.draw = True
    if scope_of(cfg) != 'mmdet':
        hook.interval = 1  # MMSegmentation's would paint each 50th batch
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir is not None:
        # their hooks have a folder of their own, MMSegmentation's visualizer does
        if scope_of(cfg) == 'mmdet':
            hook.test_out_dir = args.show_dir
        elif scope_of(cfg) == 'mmpretrain':
            hook.out_dir = args.show_dir
        else:
            cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, in place."""
    for name in ('tta_model', 'tta_pipeline'):
        if name not in cfg:
            raise SystemExit(f'--tta: needs {name} in the config.')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def write_predictions(cfg: Config, out: str) -> None:
    """Let the evaluation write its predictions, in place."""
    evaluators = cfg.test_evaluator
    # an evaluator of several data sets holds its metrics
    held = isinstance(evaluators, dict) and 'metrics' in evaluators
    found = evaluators.metrics if held else evaluators
    found = [*found] if isinstance(found, (list, tuple)) else [found]
    if scope_of(cfg) == 'mmseg':
        for evaluator in found:
            evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise SystemExit(f'--out: expected a .pkl file, but got {out!r}.')
    dump = 'mmdet.DumpDetResults' if scope_of(cfg) == 'mmdet' else 'DumpResults'
    found.append(dict(type=dump, out_file_path=out))
    if held:
        evaluators.metrics = found
    else:
        cfg.test_evaluator = found


def main() -> None:
    """Run the tool."""
    args = build_parser().parse_args()
    set_local_rank(args)
    cfg = load_config(args)
    merge_options(cfg, args.cfg_options)
    cfg.load_from = args.checkpoint
    # a run that was resumed has it in its config, and a teacher's file has no state
    cfg.resume = False
    if args.show or args.show_dir is not None:
        paint_predictions(cfg, args)
    if args.tta:
        use_tta(cfg)
    if args.out is not None:
        write_predictions(cfg, args.out)
    build_runner(cfg).test()


if __name__ == '__main__':
    main()
