"""The controls of a distilled config are the plain runs that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmselfdistill.commands.control import write_controls

GENERATIONS = "dict(type='mmselfdistill.GenerationHook', generations=2, {})"
EMA = "dict(type='mmselfdistill.EMATeacherHook', view=dict(blur=1.0), {})"


def distilled(folder: Path, base: Path, hook: str, more: str = '') -> Path:
    path = folder / 'distilled.py'
    text = f'_base_ = {str(base)!r}\ndefault_hooks = dict(self_distill={hook})\n{more}'
    path.write_text(text)
    return path


def written(config: Path, cost: float = 1.5) -> dict[str, Config]:
    """Return the controls by the ends of their names, as the framework reads them."""
    out = config.parent / 'controls'
    paths = write_controls(config, cost, out)
    assert sorted(out.glob('*.py')) == sorted(paths)
    begin = len(config.stem) + 1
    return {path.stem[begin:]: Config.fromfile(path) for path in paths}


def test_a_plain_run_that_lasts_as_long(data: Path, tmp_path: Path) -> None:
    more = "default_hooks.update(checkpoint=dict(save_best='teacher/coco/bbox_mAP'))\n"
    hook = GENERATIONS.format("validate='both'")
    config = distilled(tmp_path, data / 'mmdet.py', hook, more)
    found = written(config)
    assert found.keys() == {'plain', 'plain-restarts'}
    # 4 epochs, then 4 with a teacher: 4 + 6
    assert found['plain'].train_cfg.max_epochs == 10
    hooks = found['plain'].default_hooks
    assert 'self_distill' not in hooks
    # all others are as they were, the best chosen among the student's
    stock = Config.fromfile(data / 'mmdet.py').default_hooks
    assert hooks.keys() == stock.keys()
    assert hooks.logger == stock.logger
    assert hooks.checkpoint.save_best == 'coco/bbox_mAP'
    hook = found['plain-restarts'].default_hooks.self_distill
    assert found['plain-restarts'].train_cfg.max_epochs == 4
    assert (hook.generations, hook.loss_weight) == (2, 0.0)


def test_views_stay_and_nothing_else(data: Path, tmp_path: Path) -> None:
    more = "unlabeled=dict(data='nowhere'), task_weight=0.5, validate='both'"
    config = distilled(tmp_path, data / 'mmseg.py', EMA.format(more))
    found = written(config, 1.2)
    assert found.keys() == {'plain', 'plain-views'}
    # 8 iterations, 85 % of them with a teacher: 8 x 1.17
    assert found['plain'].train_cfg.max_iters == 9
    cfg = found['plain-views']
    assert cfg.train_cfg.max_iters == 9
    hook: Any = HOOKS.build(cfg.default_hooks.self_distill)
    assert hook.view.blur == 1.0 and hook.loss_weight == 0.0
    assert hook.task_weight is None and hook.validate == 'student'
    assert hook.unlabeled['weight'] == 0.0


def test_views_without_generations(data: Path, tmp_path: Path) -> None:
    hook = GENERATIONS.format("student='reinit', view=dict(blur=1.0)")
    found = written(distilled(tmp_path, data / 'mmdet.py', hook))
    views = found['plain-views'].default_hooks.self_distill
    assert (views.generations, views.student) == (1, 'continue')
    restarts = found['plain-restarts'].default_hooks.self_distill
    assert (restarts.generations, restarts.student) == (2, 'reinit')
    assert restarts.view == dict(blur=1.0)


def test_a_hook_among_custom_hooks(data: Path, tmp_path: Path) -> None:
    path = tmp_path / 'distilled.py'
    path.write_text(
        f'_base_ = {str(data / "mmdet.py")!r}\n'
        "custom_hooks = [dict(type='EMAHook', begin_epoch=2), "
        "dict(type='mmselfdistill.EMATeacherHook', view=dict(blur=1.0)), "
        "dict(type='mmselfdistill.DistillVisualizationHook')]\n"
        "work_dir = 'work_dirs/here'\n"
    )
    found = written(path, 2.0)
    # 4 x (1 + 0.5) epochs
    ema = dict(type='EMAHook', begin_epoch=3)
    # pictures of student and teacher are none of a plain run
    assert found['plain'].train_cfg.max_epochs == 6
    assert found['plain'].custom_hooks == [ema]
    views = dict(found['plain-views'].custom_hooks[1])
    assert found['plain-views'].custom_hooks[0] == ema
    assert (views['loss_weight'], views['view']) == (0.0, dict(blur=1.0))
    assert found['plain-views'].work_dir == 'work_dirs/here_plain-views'


def test_controls_below_a_link_inherit_the_config(data: Path, tmp_path: Path) -> None:
    config = distilled(tmp_path, data / 'mmdet.py', GENERATIONS.format(''))
    deep = tmp_path / 'a/b/c'
    deep.mkdir(parents=True)
    link = tmp_path / 'link'
    link.symlink_to(deep)
    alias = tmp_path / 'a/alias.py'
    alias.symlink_to(config)
    for given, folder in ((config, link / 'out'), (alias, tmp_path / 'out')):
        for path in write_controls(given, 1.5, folder):
            # by either name of the folder
            for each in (path, path.resolve()):
                assert Config.fromfile(each).model.type == 'RetinaNet'
    # without a link, both can be moved together
    (path, _) = write_controls(config, 1.5, deep)
    assert "_base_ = '../../../distilled.py'" in path.read_text()


@pytest.mark.parametrize('kind', ['list', 'tuple'])
def test_a_plain_run_watches_its_own_metric(
    kind: str, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'distilled.py'
    path.write_text(
        f'_base_ = {str(data / "mmdet.py")!r}\n'
        f'custom_hooks = {kind}([\n'
        "    dict(type='EarlyStoppingHook', monitor='teacher/coco/bbox_mAP'),\n"
        "    dict(type='mmselfdistill.EMATeacherHook', validate='both',\n"
        '         view=dict(blur=1.0))])\n'
        "param_scheduler = [dict(type='ReduceOnPlateauLR', rule='greater',\n"
        "    monitor='teacher/coco/bbox_mAP', end=4)]\n"
        "default_hooks = dict(ema=dict(type='EMAHook', begin_epoch=2))\n"
        'default_hooks.update(checkpoint=dict(\n'
        "    save_best=['teacher/coco/bbox_mAP', 'coco/bbox_mAP_50']))\n"
        "work_dir = 'here/'\n"
    )
    found = written(path, 2.0)
    assert found.keys() == {'plain', 'plain-views'}
    for name, cfg in found.items():
        assert 'teacher/' not in cfg.pretty_text
        assert cfg.custom_hooks[0].monitor == 'coco/bbox_mAP'
        assert len(cfg.custom_hooks) == (1 if name == 'plain' else 2)
        assert (cfg.param_scheduler[0].monitor, cfg.param_scheduler[0].end) == (
            'coco/bbox_mAP',
            6,
        )
        best = ['coco/bbox_mAP', 'coco/bbox_mAP_50']
        assert cfg.default_hooks.checkpoint.save_best == best
        assert cfg.default_hooks.ema.begin_epoch == 3
        assert cfg.work_dir == f'here_{name}'
    del found['plain'].default_hooks['ema']
    assert trained(found['plain'], tmp_path / 'run').epoch == 6


def trained(cfg: Config, folder: Path) -> Runner:
    cfg.work_dir = str(folder)
    cfg.randomness = dict(seed=0)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_controls_train_as_plain_runs_do(data: Path, tmp_path: Path) -> None:
    config = distilled(tmp_path, data / 'mmdet.py', GENERATIONS.format(''))
    found = written(config, 1.0)
    stock = Config.fromfile(data / 'mmdet.py')
    stock.train_cfg.max_epochs = 8
    expected = trained(stock, tmp_path / 'stock')
    for name in ('plain', 'plain-restarts'):
        # without a schedule of the learning rate, a restart changes nothing
        ours = trained(found[name], tmp_path / name)
        assert ours.iter == expected.iter == 16
        state = ours.model.state_dict()
        for key, value in expected.model.state_dict().items():
            assert torch.equal(state[key], value), (name, key)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'the config has no hook of mmselfdistill'),
        ("default_hooks = dict(a=dict(type='mmselfdistill.EMATeacherHook', "
         'loss_weight=0))', 'is a control itself'),
        ("default_hooks = dict(a=dict(type='mmselfdistill.EMATeacherHook', "
         'terms=dict(features=dict(weight=0), logits=dict(weight=0), '
         'boxes=dict(weight=0))))', 'terms all have weight=0'),
        ("default_hooks = dict(a=dict(type='mmselfdistill.EMATeacherHook'))\n"
         "custom_hooks = [dict(type='mmselfdistill.GenerationHook', interval=1)]",
         r"one hook of mmselfdistill, but got \['EMATeacherHook', "),
        ("custom_hooks = dict(type='mmselfdistill.EMATeacherHook')",
         'custom_hooks: expected a list of hooks, but got'),
        ("custom_hooks = ['mmselfdistill.EMATeacherHook']",
         "custom_hooks: expected the settings of a hook, but got 'mmself"),
        ("default_hooks = dict(a=dict(type='mmselfdistill.GenerationHook', "
         'interval=2, by_epoch=False))', 'counts epochs, but its hook'),
    ],
)  # fmt: skip
def test_says_what_cannot_be_controlled(
    text: str, message: str, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {str(data / "mmdet.py")!r}\n{text}\n')
    with pytest.raises(ValueError, match=message):
        write_controls(path, 1.5, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_control_does_not_go_on_from_the_distilled_run(
    data: Path, tmp_path: Path
) -> None:
    hook = "dict(type='mmselfdistill.EMATeacherHook', view=dict(blur=1.0))"
    for resume in (False, True):
        more = f"load_from = 'distilled.pth'\nresume = {resume}\n"
        config = distilled(tmp_path, data / 'mmdet.py', hook, more)
        found = written(config)
        assert found.keys() == {'plain', 'plain-views'}
        for each in found.values():
            assert not each.resume
            assert each.load_from == (None if resume else 'distilled.pth')


def test_a_control_does_not_begin_with_what_was_tested(
    data: Path, tmp_path: Path
) -> None:
    hook = "dict(type='mmselfdistill.EMATeacherHook')"
    for tested in (False, True):
        # a test writes the checkpoint into the config of the run
        more = f'work_dir = {str(tmp_path / "run")!r}\n'
        more += f'load_from = {str(tmp_path / "run/last.pth")!r}\n' if tested else ''
        config = distilled(tmp_path, data / 'mmdet.py', hook, more)
        (path,) = write_controls(config, 1.5, tmp_path / f'out-{tested}')
        # after the control was written, too
        with config.open('a') as file:
            file.write(f'load_from = {str(tmp_path / "run/last.pth")!r}\n')
        assert Config.fromfile(path).load_from is None


def test_files_of_others_are_left_alone(data: Path, tmp_path: Path) -> None:
    config = distilled(tmp_path, data / 'mmdet.py', GENERATIONS.format(''))
    mine = tmp_path / 'distilled_plain.py'
    mine.write_text('mine = 1\n')
    with pytest.raises(ValueError, match='was not written by this command'):
        write_controls(config, 1.5, tmp_path)
    with pytest.raises(
        ValueError, match=r'^--out-dir: .*distilled_plain\.py is a file$'
    ):
        write_controls(config, 1.5, mine)
    assert mine.read_text() == 'mine = 1\n'
    with pytest.raises(ValueError, match=r'--cost: .*0\.9'):
        write_controls(config, 0.9, tmp_path)
    lazy = tmp_path / 'lazy.py'
    lazy.write_text(
        'from mmengine.config import read_base\nwith read_base():\n    ...\n'
    )
    with pytest.raises(ValueError, match='pure Python'):
        write_controls(lazy, 1.5, tmp_path)
