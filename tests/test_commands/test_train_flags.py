"""What the flags of `mmselfdistill train` make of a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmselfdistill.commands import train


def prepare(*flags: object) -> Config:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.prepare(parser.parse_args([str(f) for f in flags]))


def hook_of(*flags: object) -> dict[str, Any]:
    return dict(prepare(*flags).default_hooks.self_distill)


def test_flags_become_the_hook(data: Path, tmp_path: Path) -> None:
    kind = 'mmselfdistill.GenerationHook'
    det = (data / 'mmdet.py', '--self-distill')
    seg = (data / 'mmseg.py', '--self-distill')
    assert hook_of(*det, 'generation') == dict(type=kind, generations=2)
    assert hook_of(*det, 'generation', '--generations', 3, '--student', 'reinit') == (
        dict(type=kind, generations=3, student='reinit')
    )
    for flags, by_epoch in ((det, True), (seg, False)):
        assert hook_of(*flags, 'generation', '--interval', 5) == (
            dict(type=kind, interval=5, by_epoch=by_epoch)
        )
    assert hook_of(*det, 'ema') == dict(type='mmselfdistill.EMATeacherHook')
    weights = tmp_path / 'weights.pth'
    weights.touch()
    for teacher in (str(weights), 'https://host/weights.pth'):
        assert hook_of(*det, teacher) == (
            dict(type='mmselfdistill.SelfDistillHook', teacher=teacher)
        )
    # a resumed run has its teacher in its own checkpoint
    assert hook_of(*det, 'gone.pth', '--resume')['teacher'] == 'gone.pth'
    ours = ('mmselfdistill::gfl/gfl_r50_fpn_generation-2x1x_coco', '--self-distill')
    assert hook_of(*ours, 'ema') == dict(type='mmselfdistill.EMATeacherHook')


def test_the_work_dir_of_a_run_that_is_resumed_by_its_own_config(
    data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'dumped.py'
    ours = "default_hooks = dict(ours=dict(type='mmselfdistill.EMATeacherHook'))\n"
    for kind, hook, expected in (
        ('ema', ours, 'a_ema'),
        ('generation', ours, 'a_ema_generation'),
        # a plain run whose name ends so by chance
        ('ema', '', 'a_ema_ema'),
    ):
        base = f'_base_ = {str(data / "mmdet.py")!r}\n'
        path.write_text(f"{base}work_dir = 'work_dirs/a_ema/'\n{hook}")
        cfg = prepare(path, '--self-distill', kind, '--resume')
        assert cfg.work_dir.rstrip('/') == f'work_dirs/{expected}'


def test_the_flag_replaces_the_hook_whatever_its_key(
    data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'named.py'
    path.write_text(
        f'_base_ = {str(data / "mmdet.py")!r}\n'
        "default_hooks = dict(distil=dict(type='mmselfdistill.GenerationHook', "
        'interval=2))\n'
        "custom_hooks = [dict(type='SelfDistillHook', teacher='a.pth'), "
        "dict(type='EMAHook')]\n"
    )
    cfg = prepare(path, '--self-distill', 'ema')
    assert cfg.default_hooks.self_distill == dict(type='mmselfdistill.EMATeacherHook')
    assert 'distil' not in cfg.default_hooks
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']


def test_usual_flags(data: Path, tmp_path: Path) -> None:
    config = data / 'mmdet.py'
    cfg = prepare(config)
    assert 'self_distill' not in cfg.default_hooks
    assert cfg.work_dir == 'work_dirs/mmdet' and not cfg.get('resume')
    assert prepare(config, '--self-distill', 'ema').work_dir == 'work_dirs/mmdet_ema'
    cfg = prepare(config, '--resume', '--amp', '--auto-scale-lr', '--work-dir', 'here')
    assert (cfg.resume, cfg.load_from, cfg.work_dir) == (True, None, 'here')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic' and cfg.auto_scale_lr.enable
    assert prepare(config, '--resume', 'last.pth').load_from == 'last.pth'
    scoped = tmp_path / 'scoped.py'
    scoped.write_text(
        f'_base_ = {str(config)!r}\n'
        "work_dir = 'there/'\n"
        "optim_wrapper = dict(type='mmengine.OptimWrapper')\n"
    )
    cfg = prepare(scoped, '--amp', '--self-distill', 'ema')
    assert cfg.work_dir == 'there_ema'
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


@pytest.mark.parametrize(
    ('name', 'scope', 'model'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco', 'mmdet', 'RetinaNet'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'mmdet', 'RetinaNet'),
        (
            'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
            'mmseg',
            'EncoderDecoder',
        ),
        (
            'mmselfdistill::retinanet/retinanet_r50_fpn_ema-1x_coco',
            'mmdet',
            'RetinaNet',
        ),
    ],
)
def test_zoo_names(name: str, scope: str, model: str) -> None:
    cfg = prepare(name)
    assert (cfg.default_scope, cfg.model.type) == (scope, model)
    assert cfg.work_dir == f'work_dirs/{name.rpartition("/")[2].replace(".py", "")}'


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (
            ['mmdet::retinanet/retinanet_r50_fpn_1x_coko'],
            'retinanet_r50_fpn_1x_coco.py',
        ),
        (['mmdett::retinanet/retinanet_r50_fpn_1x_coco'], 'mmdet, '),
        (
            ['mmdet::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64'],
            'Did you mean mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64?',
        ),
        (
            ['digits/gfl_r18_fpn_50e_digits.py'],
            'Did you mean mmselfdistill::digits/gfl_r18_fpn_50e_digits?',
        ),
        (['CONFIG', '--self-distill', 'genration'], "mean 'generation'"),
        (['CONFIG', '--self-distill', 'ema', '--interval', '2'], '--interval: only'),
        (['CONFIG', '--generations', '2'], 'only together with'),
    ],
)
def test_wrong_flags(flags: list[str], message: str, data: Path) -> None:
    flags = [str(data / 'mmdet.py') if f == 'CONFIG' else f for f in flags]
    with pytest.raises(SystemExit, match=message):
        prepare(*flags)


def test_the_nearest_to_a_path_is_in_its_folder(tmp_path: Path) -> None:
    for name in ('my_gfl.py', 'images/my_gfk.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    # a data set below is not searched
    message = rf'my_gfi\.py.* does not exist\. Nearest in {tmp_path}: my_gfl\.py\.$'
    with pytest.raises(SystemExit, match=message):
        prepare(tmp_path / 'my_gfi.py')


def test_a_run_that_was_taught_is_not_resumed_without_a_hook(
    data: Path, tmp_path: Path
) -> None:
    flags = (data / 'mmdet.py', '--work-dir', tmp_path)
    # there is nothing to resume yet
    train.check_resumed(prepare(*flags, '--resume'))
    path = tmp_path / 'iter_2.pth'
    torch.save(dict(mmselfdistill=dict(hook='EMATeacherHook')), path)
    (tmp_path / 'last_checkpoint').write_text(str(path))
    train.check_resumed(prepare(*flags))
    train.check_resumed(prepare(*flags, '--resume', '--self-distill', 'ema'))
    for more in ([], [path]):
        message = r'^resume: .*iter_2\.pth was written with EMATeacherHook, and this'
        with pytest.raises(SystemExit, match=message):
            train.check_resumed(prepare(*flags, '--resume', *more))
    torch.save(dict(state_dict={}), path)
    train.check_resumed(prepare(*flags, '--resume'))


@pytest.mark.parametrize(
    'option', ['work_dir.a=1', 'train_dataloader.dataset.pipeline.99.type=A']
)
def test_an_option_within_what_is_no_dict(
    option: str, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {str(data / "mmdet.py")!r}\nwork_dir = "here"\n')
    with pytest.raises(SystemExit, match=r'^--cfg-options: .*(work_dir|99)'):
        prepare(path, '--cfg-options', option)


def test_config_without_base_batch_size(data: Path) -> None:
    with pytest.raises(SystemExit, match='base_batch_size'):
        prepare(data / 'mmseg.py', '--auto-scale-lr')


def test_a_misspelt_hook_is_named_next_to_the_nearest(data: Path) -> None:
    option = 'default_hooks.self_distill.type=mmselfdistill.EMATeacherHok'
    with pytest.raises(SystemExit, match=r'Hok.*mmselfdistill\.EMATeacherHook'):
        prepare(data / 'mmdet.py', '--cfg-options', option)
