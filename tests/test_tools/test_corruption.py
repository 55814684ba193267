from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.runner import Runner

from tools.benchmarks import corruption, scenes
from tools.benchmarks.arms import MODELS, Regime, compose, settings_of
from tools.benchmarks.corruption import CORRUPTIONS, GREY, Corruption

NOISE = np.random.default_rng(0).integers(88, 168, (64, 64, 3)).astype(np.uint8)


def perturbed(kind: str, name: str, img: Any = NOISE) -> Any:
    result = Corruption(kind).transform(dict(img=img.copy(), img_path=f'a/{name}.jpg'))
    return result['img']


def only(monkeypatch: pytest.MonkeyPatch, kind: str, amount: float) -> None:
    monkeypatch.setitem(CORRUPTIONS, kind, (amount,) * 3)


@pytest.mark.parametrize('amount', CORRUPTIONS['contrast'])
def test_contrast_scales_the_spread(
    monkeypatch: pytest.MonkeyPatch, amount: float
) -> None:
    only(monkeypatch, 'contrast', amount)
    found = perturbed('contrast', 'x')
    assert found.std() == pytest.approx(amount * NOISE.std(), rel=0.01)
    assert found.mean() == pytest.approx(NOISE.mean(), abs=0.1)


def test_noise_has_its_deviation_in_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 'noise', 20.0)
    grey = np.full((64, 64, 3), 128, np.uint8)
    found = perturbed('noise', 'x', grey).astype(float)
    assert found.std() == pytest.approx(20, rel=0.03)
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.05


def test_blur_averages_as_a_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 'blur', 1.2)
    point = np.zeros((65, 65, 3), np.uint8)
    point[32, 32] = 255
    found = perturbed('blur', 'x', point)[32, 30:35, 0]
    # a separable kernel: the middle is 1 / (2 pi sigma^2), neighbours fall as exp
    falls = np.exp(-(np.array([-2, -1, 0, 1, 2]) ** 2) / (2 * 1.2**2))
    expected = 255 / (2 * np.pi * 1.2**2) * falls
    assert found == pytest.approx(expected, abs=1.5)


def test_a_square_of_the_share_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 'occlusion', 0.2)
    white = np.full((64, 64, 3), 255, np.uint8)
    covered = (perturbed('occlusion', 'x', white) == GREY).all(2)
    rows, columns = covered.any(1).sum(), covered.any(0).sum()
    assert rows == columns == round((0.2 * 64 * 64) ** 0.5)
    assert covered.sum() == rows * columns


def test_a_file_has_one_severity_and_all_three_are_met() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    spreads = []
    for name in map(str, range(300)):
        first, again = perturbed('noise', name, grey), perturbed('noise', name, grey)
        assert (first == again).all()
        spreads.append(first.std())
    counts = [
        sum(abs(s / sd - 1) < 0.1 for s in spreads) for sd in CORRUPTIONS['noise']
    ]
    assert sum(counts) == 300
    # a third each, within four standard deviations
    assert all(abs(count - 100) < 4 * (300 * 2 / 9) ** 0.5 for count in counts)


def test_a_model_is_measured_on_the_perturbed_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, 'VAL', 4)
    regime = Regime('', 12, (), ())
    model, root = MODELS['unet'], regime.scenes(tmp_path, 0)
    cfg = compose(model, regime, root, settings_of(model, 'plain'), 0)
    cfg.work_dir, cfg.log_level = str(tmp_path / 'work'), 'ERROR'
    runner = Runner.from_cfg(cfg)
    # of three severities the same, one that changes nothing
    kinds = dict(contrast=(1.0,) * 3, occlusion=(0.5,) * 3)
    monkeypatch.setattr(corruption, 'CORRUPTIONS', kinds)
    found = corruption.corrupted_scores(runner, 'pixels/nll')
    clean = runner.val()['pixels/nll']
    assert found['contrast'] == clean
    assert found['occlusion'] != clean
