"""The arms of the demo: train each once, show how far it is, read what it logged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmselfdistill
from mmselfdistill.commands.runs import Curve, Run, percent

DONE = 'done.json'
FINGERPRINT = 'fingerprint.txt'
LOG = 'output.log'


@dataclass
class Arm:
    """One training run of the comparison."""

    title: str
    cfg: Config
    folder: Path
    metric: str

    @property
    def by_epoch(self) -> bool:
        """Whether the run is measured in epochs."""
        return 'max_epochs' in self.cfg.train_cfg

    @property
    def unit(self) -> str:
        """What the run is measured in, in words."""
        return 'epochs' if self.by_epoch else 'iterations'

    @property
    def length(self) -> str:
        """Total length in words."""
        hook = self.cfg.default_hooks.get('self_distill', {})
        times = hook.get('generations', 1)
        own = self.cfg.train_cfg['max_epochs' if self.by_epoch else 'max_iters']
        return f'{times} x {own} {self.unit}' if times > 1 else f'{own} {self.unit}'

    def curve(self) -> Curve:
        """Read what the run has logged."""
        return Run.read(self.folder).curve(self.metric)

    def fingerprint(self) -> str:
        """Return a hash of all that the result depends on."""
        data = Path(self.cfg.train_dataloader.dataset.data_root, 'digits.json')
        text = self.cfg.pretty_text + data.read_text() + mmselfdistill.__version__
        return hashlib.sha256(text.encode()).hexdigest()


class Progress(Hook):
    """Prints every ten seconds where a run is and how long the rest takes."""

    priority = 'LOWEST'

    def __init__(self, arm: Arm) -> None:
        self.title = arm.title
        self.metric = arm.metric
        self.out = sys.stdout
        self.score = ''
        self.shown = 0.0

    def before_train(self, runner: Runner) -> None:
        """Remember where this process began: a resumed run begins later."""
        self.began, self.first = time.time(), runner.iter

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Print a line when it is time for one."""
        done, total = runner.iter + 1, runner.max_iters
        if time.time() - self.shown < 10 and done < total:
            return
        self.shown = time.time()
        left = (self.shown - self.began) / (done - self.first) * (total - done)
        text = (
            f'  {self.title}: iteration {done} of {total}{self.score}, '
            f'{left // 60:.0f}:{left % 60:02.0f} left'
        )
        print(text, file=self.out, flush=True)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Keep the score for the next line."""
        score = (metrics or {}).get(self.metric)
        if score is not None:
            name = self.metric.rpartition('/')[2].replace('bbox_mAP', 'AP')
            self.score = f', {name} {percent(self.metric, score):.1f}'


def with_data(cfg: Config, data: Path, seed: int) -> Config:
    """Return a config of the digits, changed in place: its data where they are."""
    root = f'{data}/'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].dataset.data_root = root
    for name in ('val_evaluator', 'test_evaluator'):
        if 'ann_file' in cfg[name]:
            cfg[name].ann_file = f'{root}annotations/instances_val2017.json'
    cfg.randomness = dict(seed=seed)
    return cfg


def run_arms(arms: list[Arm]) -> None:
    """Train all arms side by side, on as many cores each: their times compare.

    Arms that were interrupted go on, finished ones are left alone.
    """
    spawn = multiprocessing.get_context('spawn')
    threads = max(1, (os.cpu_count() or 1) // len(arms))
    processes = {
        arm.title: spawn.Process(target=run_arm, args=(arm, threads)) for arm in arms
    }
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join()
    failed = [arm for arm in arms if processes[arm.title].exitcode != 0]
    if failed:
        logs = ', '.join(str(arm.folder / LOG) for arm in failed)
        raise SystemExit(f'A run has failed; see {logs}')


def run_arm(arm: Arm, threads: int) -> None:
    """Train an arm, go on with it, or leave it alone if it is finished."""
    fingerprint = arm.folder / FINGERPRINT
    wanted = arm.fingerprint()
    if not fingerprint.is_file() or fingerprint.read_text() != wanted:
        shutil.rmtree(arm.folder, ignore_errors=True)
        arm.folder.mkdir(parents=True)
        fingerprint.write_text(wanted)
    if (arm.folder / DONE).is_file():
        print(f'  {arm.title}: finished before, nothing has changed', flush=True)
        return
    torch.set_num_threads(threads)
    # MMEngine's own choice for the loaders; this process was spawned, and it would warn
    multiprocessing.set_start_method('fork', force=True)
    cfg = Config(arm.cfg.to_dict())
    cfg.work_dir, cfg.resume = str(arm.folder), True
    progress = Progress(arm)
    # the frameworks' own words go to a file, ours to the screen
    with (arm.folder / LOG).open('a') as log, contextlib.redirect_stdout(log):
        runner = Runner.from_cfg(cfg)
        quiet(runner.logger)
        runner.register_hook(progress)
        runner.train()
    (arm.folder / DONE).write_text(json.dumps(dict(iterations=runner.iter)))


def quiet(logger: logging.Logger) -> None:
    """Keep a logger's file, and silence what it prints."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
