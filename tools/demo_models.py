"""What the demo's pictures show: predictions and features of student and teacher."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import torch
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
    teacher: Any  # data samples: their truths are the same
    student: Any


def load_both(arm: Arm) -> tuple[Any, Any, Any]:
    """Return the last student, its teacher, and the loader of the validation set."""
    cfg = arm.cfg
    init_default_scope(cfg.default_scope)
    path = find_latest_checkpoint(str(arm.folder))
    assert path is not None
    checkpoint = load_checkpoint(path)
    states = checkpoint['state_dict'], checkpoint['mmselfdistill']['teacher']
    models = [MODELS.build(cfg.model).eval() for _ in states]
    for model, state in zip(models, states):
        model.load_state_dict(state, strict=True)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's reader talks
        loader = Runner.build_dataloader(cfg.val_dataloader)
    return models[0], models[1], loader


def predict(student: Any, teacher: Any, loader: Any) -> list[Scene]:
    """Return all scenes with what both models say of them."""
    scenes = []
    for batch in loader:
        both = [model.test_step(copy_of(batch)) for model in (teacher, student)]
        shown = [map(likeliest, samples) for samples in both]
        scenes += [Scene(*each) for each in zip(batch['inputs'], *shown)]
    return scenes


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
    """Return the scenes on which teacher and student agree least."""
    return sorted(scenes, key=lambda s: -disagreement(s.teacher, s.student))[:count]


def disagreement(one: Any, other: Any) -> float:
    """Return the share of differing pixels, or the scores of boxes without a like."""
    if 'pred_sem_seg' in one:
        differ = one.pred_sem_seg.data != other.pred_sem_seg.data
        return float(differ.float().mean())
    both = [Boxes.of(each.pred_instances, MIN_SCORE) for each in (one, other)]
    same = match(*both).same
    liked = [[pair[side] for pair in same] for side in (0, 1)]
    return float(sum(b.scores.sum() - b.scores[i].sum() for b, i in zip(both, liked)))


def feature_maps(
    student: Any, teacher: Any, loader: Any, count: int
) -> tuple[str, list[Any]]:
    """Return the level on which features differ most, and the scenes there.

    A level's channels are standardised over the first batch; a map is the length
    of a position's vector, and two levels differ by one minus the correlation of
    their values. Each scene comes as (image, teacher, student, difference).
    """
    batch = next(iter(loader))
    inputs = student.data_preprocessor(copy_of(batch), False)['inputs']
    both = [model.extract_feat(inputs) for model in (teacher, student)]
    levels = [[standardised(x) for x in pair] for pair in zip(*both)]
    # the top of a pyramid is a handful of cells: nothing to look at
    wide = [i for i, (t, _) in enumerate(levels) if t.shape[-1] >= 8]
    level = max(wide, key=lambda i: distance(*levels[i]).mean())
    theirs, ours = levels[level]
    order = distance(theirs, ours).argsort(descending=True)[:count].tolist()
    maps = [
        (
            rgb(batch['inputs'][i]),
            *map(length, (theirs[i], ours[i], ours[i] - theirs[i])),
        )
        for i in order
    ]
    shape = 'x'.join(map(str, theirs.shape[1:]))
    return f'level {level + 1} of {len(levels)} ({shape})', maps


def standardised(features: Tensor) -> Tensor:
    """Return (N, C, H, W) with mean 0 and variance 1 in each channel."""
    mean = features.mean((0, 2, 3), keepdim=True)
    return (features - mean) / features.std((0, 2, 3), keepdim=True).clamp(min=1e-6)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Return one minus the cosine of two images' features, (N,)."""
    return 1 - torch.cosine_similarity(one.flatten(1), other.flatten(1))


def length(features: Tensor) -> Any:
    """Return the root mean square over the channels of (C, H, W)."""
    return features.pow(2).mean(0).sqrt().numpy()
