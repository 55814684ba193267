"""The arms of the demo: train each once, show how far it is, read what it logged."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from rich.progress import Progress

from mmselfdistill.commands.runs import Curve, Run, percent
from mmselfdistill.version import source_hash

DONE = 'done.txt'
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
    def length(self) -> int:
        """Total length in epochs or iterations."""
        train = self.cfg.train_cfg
        return int(train['max_epochs' if 'max_epochs' in train else 'max_iters'])

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / DONE).is_file()

    def curve(self) -> Curve:
        """Read what the run has logged."""
        return Run.read(self.folder).curve(self.metric)

    def position(self) -> tuple[int, str]:
        """Return where the run is, and its last score in words."""
        try:
            run = Run.read(self.folder)
        except ValueError:  # nothing is logged yet
            return 0, ''
        last = run.metrics[max(run.metrics)] if run.metrics else {}
        score = percent(self.metric, last.get(self.metric, 0.0))
        return int(run.train[-1]['at']), f'{score:.1f}' if last else ''

    def fingerprint(self) -> str:
        """Return a hash of all that the result depends on."""
        data = Path(self.cfg.train_dataloader.dataset.data_root, 'digits.json')
        code = source_hash() + torch.__version__ + mmengine.__version__
        text = self.cfg.pretty_text + data.read_text() + code
        return hashlib.sha256(text.encode()).hexdigest()

    def prepare(self) -> None:
        """Empty the folder, unless the same run was begun in it."""
        fingerprint, wanted = self.folder / FINGERPRINT, self.fingerprint()
        if not fingerprint.is_file() or fingerprint.read_text() != wanted:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.cfg.dump(self.folder / 'config.py')
            fingerprint.write_text(wanted)

    def start(self, threads: int) -> subprocess.Popen[bytes]:
        """Train, or go on where the run was interrupted, in a process of its own."""
        train = [sys.executable, '-m', 'mmselfdistill.cli', 'train']
        options = ['--work-dir', str(self.folder), '--resume']
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        with (self.folder / LOG).open('ab') as log:
            return subprocess.Popen(
                [*train, str(self.folder / 'config.py'), *options],
                env=environment,
                stdout=log,
                stderr=log,
            )


def with_data(cfg: Config, data: Path, seed: int) -> Config:
    """Return a config of the digits, changed in place: its data where they are."""
    root = f'{data}/'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].dataset.data_root = root
    for name in ('val_evaluator', 'test_evaluator'):
        if 'ann_file' in cfg[name]:
            cfg[name].ann_file = f'{root}annotations/instances_val2017.json'
    hook = cfg.get('default_hooks', {}).get('self_distill', {})
    if 'unlabeled' in hook:
        hook.unlabeled.data = f'{root}unlabeled2017'
    cfg.randomness = dict(seed=seed)
    return cfg


def run_arms(arms: list[Arm]) -> None:
    """Train all arms side by side, on as many cores each: their times compare.

    Arms that were interrupted go on, finished ones are left alone.

    Raises:
        SystemExit: If a run fails.
    """
    for arm in arms:
        arm.prepare()
    threads = max(1, (os.cpu_count() or 1) // len(arms))
    processes = {arm.title: arm.start(threads) for arm in arms if not arm.done}
    try:
        with Progress() as progress:
            tasks = {a.title: progress.add_task(a.title, total=a.length) for a in arms}
            while True:
                running = any(p.poll() is None for p in processes.values())
                for arm in arms:
                    at, score = arm.position()
                    text = f'{arm.title} {score}'
                    progress.update(tasks[arm.title], completed=at, description=text)
                if not running:
                    break
                time.sleep(2)
    finally:
        for process in processes.values():
            process.terminate()
    failed = [arm for arm in arms if arm.title in processes]
    failed = [arm for arm in failed if processes[arm.title].returncode != 0]
    if failed:
        logs = ', '.join(str(arm.folder / LOG) for arm in failed)
        raise SystemExit(f'A run has failed; see {logs}')
    for arm in arms:
        (arm.folder / DONE).touch()
