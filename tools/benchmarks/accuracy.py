"""Measure what self-distillation gains, against runs without a teacher.

Small models of the zoos on scenes of digits, each regime and arm (see arms.py) on
several seeds, with scenes of their own. Runs that are in the results are not repeated;
an interrupted benchmark goes on.

    python -m tools.benchmarks.accuracy --models retinanet --regimes few --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Iterator, Tuple

from rich.progress import Progress

from mmselfdistill.commands.runs import Run
from mmselfdistill.hooks.validation import PREFIX

from . import calibration  # noqa: F401  (registers its metrics)
from .arms import (
    MODELS,
    REGIMES,
    TITLES,
    compose,
    digest,
    settings_hash,
    settings_of,
)
from .corruption import corrupted_scores
from .results import write_whole

Job = Tuple[str, str, str, int]
# in how many pools a run is begun again whose pool was broken
_POOLS = 2


def train(job: Job, scenes: Path) -> dict[str, Any]:
    """Train one run, and return what it measured.

    Args:
        job (Job): Names of the model, the regime and the arm, and the seed.
        scenes (Path): Folder of all scenes.
    """
    import torch
    from mmengine.runner import Runner

    torch.set_num_threads(1)
    cfg = config_of(job, scenes)
    wanted = digest(cfg)
    cfg.log_level = 'ERROR'
    # MMEngine keeps loggers and visualizers by name, and a process trains several runs
    cfg.experiment_name = cfg.visualizer.name = '-'.join(map(str, job))
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        started = time.time()
        runner.train()
        seconds = time.time() - started
        metrics, best = scores_of(Path(folder), MODELS[job[0]].metric)
        corrupted = corrupted_scores(runner, MODELS[job[0]].metric)
        for name in ('mmengine', cfg.experiment_name):
            logging.getLogger(name).handlers.clear()
    return dict(
        digest=wanted,
        settings=settings_hash(*job[:3]),
        metrics=metrics,
        best=best,
        corrupted=corrupted,
        seconds=round(seconds, 1),
        iterations=cfg.train_cfg.max_iters,
    )


def scores_of(folder: Path, metric: str) -> tuple[dict[str, float], float]:
    """Return the last metrics of a work folder, and the best score of all validations.

    The best is that of the student or of its average, and is chosen on the scenes that
    it is measured on: more than a user can get by stopping early.
    """
    run = Run.read(folder)
    last = run.metrics[max(run.metrics)]
    validations = [at for side in run.sides() for at in side.metrics.values()]
    metrics = {name: last[name] for name in run.names() if name in last}
    if metric.startswith('coco/'):
        # there is no figure where nothing was detected
        metrics = {metric: 0.0, PREFIX + metric: 0.0, **metrics}
        validations = [{metric: 0.0, **at} for at in validations]
    return metrics, max(at[metric] for at in validations)


def config_of(job: Job, scenes: Path) -> Any:
    """Return the whole config of a run."""
    model, regime, arm, seed = job
    root = REGIMES[regime].scenes(scenes, seed)
    hook = settings_of(MODELS[model], arm)
    return compose(MODELS[model], REGIMES[regime], root, hook, seed)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results by key, none if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write the results, all or nothing."""
    write_whole(path, json.dumps(results, indent=1, sort_keys=True))


def missing(
    jobs: list[Job], results: dict[str, dict[str, Any]], scenes: Path
) -> list[Job]:
    """Return the runs that have no result of today's config."""

    def is_known(job: Job) -> bool:
        # the scenes of a run that has no result are drawn when it begins
        found = results.get('/'.join(map(str, job)))
        return found is not None and found['digest'] == digest(config_of(job, scenes))

    return [job for job in jobs if not is_known(job)]


def end_with_parent() -> None:
    """Let this process end when its parent is killed, instead of training on."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _completed(futures: dict[Future[Any], Job]) -> Iterator[Future[Any]]:
    """Yield what has ended; an interruption begins no other run."""
    try:
        yield from as_completed(futures)
    finally:
        for future in futures:
            future.cancel()


def run(jobs: list[Job], args: argparse.Namespace) -> list[Job]:
    """Train what has no result yet, some at a time, and return what failed."""
    todo = missing(jobs, read(args.results), args.scenes)
    failed: list[Job] = []
    with Progress() as progress:
        bar = progress.add_task('Training', total=len(todo))
        for last in [False] * _POOLS + [True]:
            ended = _train_all(todo, args, progress, bar, last)
            failed += ended['failed']
            # a process that was killed takes its pool with it: its run comes last now
            again = [job for job in todo if job in ended['again']]
            todo = [*again[args.workers :], *again[: args.workers]]
    return failed


def _train_all(
    jobs: list[Job], args: argparse.Namespace, progress: Progress, bar: Any, last: bool
) -> dict[str, list[Job]]:
    """Train runs in one pool; return those that failed, and those to begin again."""
    ended: dict[str, list[Job]] = dict(failed=[], again=[])
    if not jobs:
        return ended
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.workers, spawn, end_with_parent) as pool:
        futures = {pool.submit(train, job, args.scenes): job for job in jobs}
        for future in _completed(futures):
            job, error = futures[future], future.exception()
            if isinstance(error, BrokenProcessPool) and not last:
                ended['again'].append(job)
                continue
            progress.advance(bar)
            if error:
                ended['failed'].append(job)
                why = f'failed: {type(error).__name__}: {error}'
                progress.console.print(*job, why, soft_wrap=True, markup=False)
                continue
            found, results = future.result(), read(args.results)
            results['/'.join(map(str, job))] = found
            write(args.results, results)
            score = found['metrics'][MODELS[job[0]].metric]
            progress.console.print(*job, f'{score:.4g}', found['seconds'])
    return ended


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--regimes', nargs='+', choices=REGIMES, default=list(REGIMES))
    parser.add_argument(
        '--arms', nargs='+', choices=TITLES, help='Defaults to all of a regime'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=list(range(8)))
    parser.add_argument('--workers', type=int, default=2, help='runs at a time')
    parser.add_argument('--scenes', type=Path, default=Path('work_dirs/scenes'))
    parser.add_argument('--results', type=Path, default=Path('work_dirs/accuracy.json'))
    args = parser.parse_args()
    for folder in (args.scenes, args.results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (model, regime, arm, seed)
        for seed in args.seeds
        for model in args.models
        for regime in args.regimes
        for arm in args.arms or (*REGIMES[regime].controls, *REGIMES[regime].arms)
    ]
    failed = run(jobs, args)
    if failed:
        names = ', '.join('/'.join(map(str, job)) for job in failed)
        raise SystemExit(f'Runs have failed: {names}. The others are in {args.results}')


if __name__ == '__main__':
    main()
