"""What a trained model finds on perturbed scenes."""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner

GREY = 128.0
# three severities: sd of 255, sd in pixels, share of the contrast left, share covered
CORRUPTIONS = dict(
    noise=(10.0, 20.0, 40.0),
    blur=(0.6, 0.9, 1.2),
    contrast=(0.5, 0.3, 0.15),
    occlusion=(0.05, 0.1, 0.2),
)


@TRANSFORMS.register_module()
class Corruption(BaseTransform):
    """Perturb an image by one of three severities, as its file's name says.

    So it is the same in each run. Noise is normal, and drawn for each value. Blur is
    Gaussian. Contrast is to the image's mean. What is covered is one grey square.

    Args:
        kind (str): One of :data:`CORRUPTIONS`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Perturb results['img'], an array (H, W, 3) of uint8."""
        name = Path(results['img_path']).name
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        amount = rng.choice(CORRUPTIONS[self.kind])
        img = results['img'].astype(np.float32)
        if self.kind == 'noise':
            img = img + rng.normal(0, amount, img.shape)
        elif self.kind == 'blur':
            img = cv2.GaussianBlur(img, (0, 0), amount)
        elif self.kind == 'contrast':
            img = img.mean() + (img - img.mean()) * amount
        else:
            height, width = img.shape[:2]
            side = round((amount * height * width) ** 0.5)
            y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
            img[y : y + side, x : x + side] = GREY
        results['img'] = img.round().clip(0, 255).astype(np.uint8)
        return results


def corrupted_scores(runner: Runner, metric: str) -> dict[str, float]:
    """Return the score of the runner's model by kind of corruption.

    Args:
        runner (Runner): Whose model has been trained; its validation scenes are used.
        metric (str): The figure, as the evaluator names it.
    """
    return {kind: _score(runner, kind, metric) for kind in CORRUPTIONS}


def _score(runner: Runner, kind: str, metric: str) -> float:
    cfg = copy.deepcopy(runner.cfg.val_dataloader)
    cfg.dataset.pipeline.insert(1, dict(type='Corruption', kind=kind))
    loader = runner.build_dataloader(cfg)
    evaluator = runner.build_evaluator(copy.deepcopy(runner.cfg.val_evaluator))
    evaluator.dataset_meta = loader.dataset.metainfo
    runner.model.eval()
    with torch.no_grad():
        for batch in loader:
            evaluator.process(runner.model.val_step(batch), batch)
    found = evaluator.evaluate(len(loader.dataset))
    # COCO's metric has no figure where nothing was detected
    nothing = {metric: 0.0} if metric.startswith('coco/') else {}
    return float({**nothing, **found}[metric])
