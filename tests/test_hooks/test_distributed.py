"""Two processes on gloo: one teacher, one student, gradients of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmselfdistill.hooks.learned import AveragedGradients

if TYPE_CHECKING:
    from tests.test_hooks.conftest import Runs

EMA = dict(
    type='mmselfdistill.EMATeacherHook',
    momentum=0.5,
    schedule='constant',
    loss_weight=20.0,
)
GENERATION = dict(
    type='mmselfdistill.GenerationHook', interval=2, by_epoch=False, loss_weight=20.0
)
REINIT = dict(GENERATION, student='reinit')
# a loss with parameters: each rank has a gradient of its own
PROJECTED = dict(features=dict(type='FeatureMSELoss', projector=32))
RATE = 0.1


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: t.detach().clone() for key, t in model.state_dict().items()}


def gradients(student: Any, batch: Any) -> dict[str, dict[str, Tensor]]:
    """Return one rank's own gradients, of the task alone and of all losses.

    The model is left as it was, random state and batch statistics included.
    """
    kept, rng = state(student), torch.get_rng_state()
    found = {}
    for name in ('task', 'all'):
        torch.set_rng_state(rng)
        data = student.data_preprocessor(batch, True)
        losses = student(**data, mode='loss')
        if name == 'task':
            losses = {k: v for k, v in losses.items() if 'loss_sd_' not in k}
        student.parse_losses(losses)[0].backward()
        found[name] = {
            key: p.grad.clone()
            for key, p in student.named_parameters()
            if p.grad is not None
        }
        student.zero_grad(set_to_none=True)
    student.load_state_dict(kept)
    torch.set_rng_state(rng)
    return found


def watch(runner: Runner) -> list[dict[str, Any]]:
    """Return a list that grows by what is seen before and after each iteration."""
    seen: list[dict[str, Any]] = []

    def look() -> tuple[Any, dict[str, Tensor], dict[str, Tensor] | None]:
        (hook,) = (hook for hook in runner.hooks if hasattr(hook, 'distiller'))
        student, teacher = runner.model.module, hook.distiller.teacher
        return student, state(student), None if teacher is None else state(teacher)

    def before_train_iter(runner: Runner, batch_idx: int, data_batch: Any) -> None:
        student, before, teacher = look()
        own = gradients(student, data_batch)
        seen.append(dict(before=before, teacher_before=teacher, own=own))

    def after_train_iter(runner: Runner, **_: Any) -> None:
        _, seen[-1]['after'], seen[-1]['teacher_after'] = look()
        (ours,) = (hook for hook in runner.hooks if hasattr(hook, 'distiller'))
        seen[-1]['losses'] = [state(term.loss) for term in ours.distiller.terms]

    hook = Hook()
    hook.before_train_iter = before_train_iter
    hook.after_train_iter = after_train_iter
    runner.register_hook(hook, 'LOWEST')
    return seen


def work(*configs: str) -> None:
    """Train each config on one rank, and save next to it what was seen."""
    # MMEngine's own launcher asks for a GPU
    dist.init_process_group('gloo')
    torch.save(averages(), Path(configs[0]).with_name(f'averages.{dist.get_rank()}'))
    for config in configs:
        runner = Runner.from_cfg(Config.fromfile(config))
        seen = watch(runner)
        runner.train()
        torch.save(seen, Path(config).with_suffix(f'.{dist.get_rank()}'))
    dist.destroy_process_group()


def averages() -> list[list[Tensor]]:
    """Return the gradients of a sum and of a product, after each of two passes."""
    own = float(dist.get_rank() + 1)
    matrix, vector = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))
    parameters = [matrix, vector, nn.Parameter(torch.ones(1))]
    AveragedGradients(parameters)
    found = []
    for _ in range(2):
        # what is computed first is ready last: the ranks differ
        used = [matrix, vector] if own == 1 else [vector, matrix]
        parts = {id(each): each * own for each in used}
        product = torch.arange(8.0).view(2, 4) @ parts[id(vector)]
        (parts[id(matrix)].sum() + product.sum()).backward()
        found.append([each.grad.clone() for each in used if each.grad is not None])
    assert parameters[-1].grad is None
    return [grads if own == 1 else grads[::-1] for grads in found]


def config_of(runs: Runs, name: str, hook: dict[str, Any], iters: int) -> Config:
    cfg = runs.config(name, hook, iters=iters)
    cfg.launcher = 'pytorch'
    # as MMEngine wraps by itself: each rank keeps its own batch statistics
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )
    return cfg


def deeplab_of(runs: Runs, hook: dict[str, Any]) -> Config:
    cfg = config_of(runs, 'deeplabv3plus', hook, 5)
    # the mean gradient can be read off the weights
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=RATE))
    cfg.param_scheduler = None
    for head in ('decode_head', 'auxiliary_head'):
        cfg.model[head].dropout_ratio = 0
    return cfg


def run_on_two_ranks(*configs: Path) -> None:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node=2', __file__, *map(str, configs)]
    done = subprocess.run(
        command,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def seen_by_both(path: Path) -> list[list[dict[str, Any]]]:
    """Return what each rank saw of a config, by iteration."""
    files = [path.with_suffix(f'.{rank}') for rank in (0, 1)]
    return [torch.load(file, weights_only=True) for file in files]


def split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters, and running statistics."""
    statistics = {key: t for key, t in state.items() if 'running_' in key}
    counts = {key for key in state if 'num_batches' in key}
    others = {k: t for k, t in state.items() if k not in {*statistics, *counts}}
    return others, statistics


def test_two_processes(runs: Runs, tmp_path: Path) -> None:
    # so the terms have a gradient at equal weights too
    norm = dict(teacher_norm='running')
    kinds = dict(ema=EMA, generation=GENERATION, reinit=REINIT)
    hooks = {name: {**hook, **norm} for name, hook in kinds.items()}
    paths = [tmp_path / f'{name}.py' for name in hooks]
    for path, hook in zip(paths, hooks.values()):
        deeplab_of(runs, hook).dump(path)
    run_on_two_ranks(*paths)
    zero, one = seen_by_both(tmp_path / 'averages.py')
    # the ranks' own gradients are 1 and 2 times these
    mean = torch.full((3, 2), 1.5), 1.5 * torch.tensor([4.0, 6, 8, 10])
    for passes, found in enumerate(zip(zero, one), 1):
        for grads in found:
            assert all(map(torch.equal, grads, [passes * each for each in mean]))
    for path in paths:
        zero, one = seen_by_both(path)
        assert len(zero) == len(one) == 5
        for step, both in enumerate(zip(zero, one)):
            fresh = step in ((0, 2, 4) if path.stem == 'reinit' else (0,))
            check_equal_weights(runs, *both, fresh)
            first = 0 if path.stem == 'ema' else 2
            check_reduced_gradients(*both, taught=step >= first)
        for step in (0,) if path.stem == 'ema' else (2, 4):
            # at a boundary the teacher is rank 0's student
            teacher, student = one[step]['teacher_before'], zero[step]['before']
            if path.stem == 'reinit':
                # which has fresh weights then
                assert runs.differences(student, teacher) != []
                student = zero[step - 1]['after']
            assert runs.differences(student, teacher) == []


def test_one_teacher_for_every_kind_of_model(runs: Runs, tmp_path: Path) -> None:
    names = [name for name in runs.models if name != 'deeplabv3plus']
    paths = [tmp_path / f'{name}.py' for name in names]
    for name, path in zip(names, paths):
        terms = PROJECTED if name == 'retinanet' else {}
        config_of(runs, name, {**EMA, 'terms': terms}, 2).dump(path)
    run_on_two_ranks(*paths)
    for path in paths:
        zero, one = seen_by_both(path)
        last, first = zero[-1], zero[0]
        assert runs.differences(last['teacher_after'], one[-1]['teacher_after']) == []
        parameters = split(last['after'])[0], split(one[-1]['after'])[0]
        assert runs.differences(*parameters) == []
        # and it has moved
        assert runs.differences(first['teacher_before'], last['teacher_after']) != []
        assert runs.differences(last['losses'], one[-1]['losses']) == []
        if path.stem == 'retinanet':
            weight = last['losses'][0]['projector']
            assert float((weight - torch.eye(32)).abs().max()) > 1e-3


def check_equal_weights(
    runs: Runs, zero: dict[str, Any], one: dict[str, Any], fresh: bool
) -> None:
    for key in ('teacher_before', 'teacher_after'):
        assert runs.differences(zero[key], one[key]) == []
    for key in ('before', 'after'):
        parameters, statistics = zip(split(zero[key]), split(one[key]))
        assert runs.differences(*parameters) == []
        # each rank's own: unless they were sent, the teachers' would differ too
        differing = runs.differences(*statistics)
        begins = fresh and key == 'before'
        assert len(differing) == (0 if begins else len(statistics[0]))


def check_reduced_gradients(
    zero: dict[str, Any], one: dict[str, Any], taught: bool
) -> None:
    """Check that the step was along the mean of both ranks' gradients."""
    share = apart = 0.0
    for key, gradient in zero['own']['all'].items():
        other = one['own']['all'][key]
        mean = (gradient + other) / 2
        step = (zero['before'][key] - zero['after'][key]) / RATE
        torch.testing.assert_close(step, mean, rtol=1e-3, atol=1e-4)
        task = (zero['own']['task'][key] + one['own']['task'][key]) / 2
        share = max(share, float((mean - task).abs().max()))
        apart = max(apart, float((gradient - other).abs().max()))
    assert apart > 0.01
    # far above the tolerance: the terms' own gradients are reduced as well
    assert share > 0.01 if taught else share == 0


if __name__ == '__main__':
    work(*sys.argv[1:])
