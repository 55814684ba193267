"""What ``mmselfdistill check`` tries of a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmselfdistill.commands.check import check, run, written

DIGITS = Path(__file__).parents[2] / 'configs' / 'digits'


@pytest.mark.parametrize(
    ('name', 'labeled', 'unlabeled'),
    [
        (
            'retinanet_r18_fpn_1xb8-unlabeled-90e_digits',
            dict(logits=['2688x10'], boxes=['2688x4']),
            dict(logits=['2688x10'], boxes=['2688x4']),
        ),
        (
            'unet-s4-d8_fcn_1xb8-unlabeled-4800_digits-64x64',
            {},
            dict(pseudo_labels=['2x11x32x32']),
        ),
        (
            'retinanet_r18_fpn_ema-50e_digits',
            dict(features=['2x32x16x16'], logits=['2688x10'], boxes=['2688x4']),
            {},
        ),
    ],
)
def test_terms_are_tried_with_and_without_labels(
    name: str, labeled: dict[str, list[str]], unlabeled: dict[str, list[str]]
) -> None:
    report = check(Config.fromfile(DIGITS / f'{name}.py'))
    for found, expected in ((report.terms, labeled), (report.unlabeled, unlabeled)):
        assert {k: term.tensors[:1] for k, term in found.items()} == expected
        for term in found.values():
            # hard labels, too: nothing has to be sure here
            assert term.equal == term.frozen == 0 < term.apart
            assert term.gradient > 0
    lines = written(report).splitlines()
    rows = [*labeled, *(f'{term}, no labels' for term in unlabeled)]
    assert [line[: len(row)] for line, row in zip(lines[1:], rows)] == rows
    assert lines[-1] == 'passed'


def test_a_confidence_is_checked_and_random_weights_need_not_reach_it() -> None:
    cfg = Config.fromfile(DIGITS / 'unet-s4-d8_fcn_1xb8-unlabeled-4800_digits-64x64.py')
    cfg.default_hooks.self_distill.unlabeled.confidence = 0.9
    assert check(cfg).unlabeled.keys() == {'pseudo_labels'}
    cfg = Config.fromfile(DIGITS / 'retinanet_r18_fpn_1xb8-unlabeled-90e_digits.py')
    cfg.default_hooks.self_distill.unlabeled.confidence = 0.9
    with pytest.raises(ValueError, match=r'^unlabeled.confidence: a single-stage'):
        check(cfg)


def test_images_of_weight_0_are_not_tried() -> None:
    cfg = Config.fromfile(DIGITS / 'retinanet_r18_fpn_1xb8-unlabeled-90e_digits.py')
    cfg.default_hooks.self_distill.unlabeled.weight = 0
    report = check(cfg)
    assert report.terms.keys() == {'logits', 'boxes'}
    assert report.unlabeled == {}


@pytest.mark.parametrize(
    'settings',
    [
        dict(terms=dict(features=None, logits=dict(weight=0), boxes=dict(weight=0))),
        dict(loss_weight=0.0),
        dict(loss_weight=0.0, unlabeled=dict(data='data/others')),
    ],
)
def test_a_hook_whose_terms_have_no_weight_has_not_passed(
    settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config.fromfile(DIGITS / 'retinanet_r18_fpn_ema-50e_digits.py')
    cfg.default_hooks.self_distill.update(settings)
    path = tmp_path / 'config.py'
    cfg.dump(path)
    with pytest.raises(SystemExit, match=r'^1$'):
        run(argparse.Namespace(config=str(path), cfg_options=None))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'Nothing was tried: every term has a weight of 0'
