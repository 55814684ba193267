"""What a test's flags make of the configs of each framework."""

from __future__ import annotations

import argparse

import pytest
from mmengine.config import Config

from tools.test import paint_predictions, write_predictions

ARGS = argparse.Namespace(show=False, show_dir='painted', wait_time=1)


def config(scope: str, hook: str, **more: object) -> Config:
    hooks = dict(visualization=dict(type=hook))
    visualizer = dict(type='Visualizer')
    return Config(
        dict(default_scope=scope, default_hooks=hooks, visualizer=visualizer, **more)
    )


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        # a tracker's has no interval
        ('mmdet', dict(draw=True, test_out_dir='painted')),
        ('mmseg', dict(draw=True, interval=1)),
        ('mmpretrain', dict(enable=True, interval=1, out_dir='painted')),
    ],
)
def test_each_hook_is_told_in_its_own_words(
    scope: str, expected: dict[str, object]
) -> None:
    cfg = config(scope, 'Hook')
    paint_predictions(cfg, ARGS)
    assert cfg.default_hooks.visualization == dict(type='Hook', **expected)
    folder = cfg.visualizer.get('save_dir')
    assert folder == ('painted' if scope == 'mmseg' else None)


def test_predictions_are_one_more_metric() -> None:
    one, other = dict(type='One'), dict(type='Other')
    dumped = dict(type='mmdet.DumpDetResults', out_file_path='a.pkl')
    for evaluator, metrics in ((one, [one]), ([one, other], [one, other])):
        cfg = config('mmdet', 'Hook', test_evaluator=evaluator)
        write_predictions(cfg, 'a.pkl')
        assert cfg.test_evaluator == [*metrics, dumped]
    # of several data sets
    several = dict(type='MultiDatasetsEvaluator', metrics=[one, other])
    cfg = config('mmdet', 'Hook', test_evaluator=several)
    write_predictions(cfg, 'a.pkl')
    assert cfg.test_evaluator == dict(several, metrics=[one, other, dumped])
    cfg = config('mmpretrain', 'Hook', test_evaluator=one)
    write_predictions(cfg, 'a.pkl')
    assert cfg.test_evaluator == [one, dict(dumped, type='DumpResults')]
    with pytest.raises(SystemExit, match=r'expected a \.pkl file'):
        write_predictions(cfg, 'folder')
