"""What the demo's pictures show: predictions of both runs."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

from mmcv.ops import nms
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from mmselfdistill.compat import load_checkpoint
from mmselfdistill.visualization.differences import Boxes, match
from tools.demo_arms import Arm

# of detections that are shown and compared
MIN_SCORE = 0.4
MAX_OVERLAP = 0.5  # a digit is shown once, under its likeliest class


class Scene(NamedTuple):
    """One validation scene, and what both models say of it."""

    image: Tensor  # (3, H, W), BGR
    plain: Any  # data samples: their truths are the same
    distilled: Any


def load(arm: Arm) -> Any:
    """Return the model that a run has trained."""
    path = find_latest_checkpoint(str(arm.folder))
    assert path is not None
    model = MODELS.build(arm.cfg.model).eval()
    model.load_state_dict(load_checkpoint(path)['state_dict'], strict=True)
    return model


def predict(distilled: Arm, plain: Arm) -> tuple[list[Scene], Any]:
    """Return all validation scenes with what both models say, and their metainfo."""
    init_default_scope(plain.cfg.default_scope)
    models = load(plain), load(distilled)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's reader talks
        loader = Runner.build_dataloader(plain.cfg.val_dataloader)
    scenes = []
    for batch in loader:
        both = [model.test_step(copy_of(batch)) for model in models]
        shown = [map(likeliest, samples) for samples in both]
        scenes += [Scene(*each) for each in zip(batch['inputs'], *shown)]
    return scenes, loader.dataset.metainfo


def likeliest(sample: Any) -> Any:
    """Keep one box of those that overlap, whatever their classes."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        _, kept = nms(found.bboxes, found.scores, MAX_OVERLAP)
        sample.pred_instances = found[kept]
    return sample


def copy_of(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose samples a model may write into."""
    samples = [sample.clone() for sample in batch['data_samples']]
    return dict(inputs=list(batch['inputs']), data_samples=samples)


def rgb(image: Tensor) -> Any:
    """Return a loaded image, (3, H, W) in BGR, as a picture."""
    return image.permute(1, 2, 0).numpy()[..., ::-1]


def most_different(scenes: list[Scene], count: int) -> list[Scene]:
    """Return the scenes on which both models agree least."""
    return sorted(scenes, key=lambda s: -disagreement(s.plain, s.distilled))[:count]


def disagreement(one: Any, other: Any) -> float:
    """Return the share of differing pixels, or the scores of boxes without a like."""
    if 'pred_sem_seg' in one:
        differ = one.pred_sem_seg.data != other.pred_sem_seg.data
        return float(differ.float().mean())
    both = [Boxes.of(each.pred_instances, MIN_SCORE) for each in (one, other)]
    same = match(*both).same
    liked = [[pair[side] for pair in same] for side in (0, 1)]
    return float(sum(b.scores.sum() - b.scores[i].sum() for b, i in zip(both, liked)))
