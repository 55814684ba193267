"""What the demo's pictures show: predictions and features of student and teacher."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
import torch
from demo_arms import Arm  # type: ignore[import-not-found]
from mmcv.ops import nms
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import find_latest_checkpoint
from torch import Tensor

from mmselfdistill.compat import load_checkpoint

BATCH = 32
# of detections that are shown and compared
MIN_SCORE = 0.4
MAX_OVERLAP = 0.5  # a digit is shown once, under its likeliest class


class Scene(NamedTuple):
    """One validation scene: rows of boxes, or label maps, of all three."""

    image: Any  # (H, W, 3), RGB
    truth: Any
    teacher: Any
    student: Any

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.image.shape[1])


def load_both(arm: Arm) -> tuple[Any, Any, Any]:
    """Return the last student, its teacher, and the validation set."""
    cfg = arm.cfg
    init_default_scope(cfg.default_scope)
    path = find_latest_checkpoint(str(arm.folder))
    assert path is not None
    checkpoint = load_checkpoint(path)
    states = checkpoint['state_dict'], checkpoint['mmselfdistill']['teacher']
    models = [MODELS.build(cfg.model) for _ in states]
    for model, state in zip(models, states):
        model.load_state_dict(state, strict=True)
        model.eval()
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's reader talks
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    return models[0], models[1], dataset


def batches(dataset: Any) -> Any:
    """Yield the data set in batches, in order."""
    for begin in range(0, len(dataset), BATCH):
        end = min(begin + BATCH, len(dataset))
        yield pseudo_collate([dataset[i] for i in range(begin, end)])


def predict(student: Any, teacher: Any, dataset: Any) -> list[Scene]:
    """Return all scenes with what both models say of them."""
    scenes = []
    for batch in batches(dataset):
        pixels = batch['inputs']
        truths = [readable(sample, truth=True) for sample in batch['data_samples']]
        said = [
            [readable(sample) for sample in model.test_step(copy_of(batch))]
            for model in (teacher, student)
        ]
        for image, *rest in zip(pixels, truths, *said):
            scenes.append(Scene(rgb(image), *rest))
    return scenes


def copy_of(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose samples a model may write into."""
    samples = [sample.clone() for sample in batch['data_samples']]
    return dict(inputs=list(batch['inputs']), data_samples=samples)


def rgb(image: Tensor) -> Any:
    """Return a loaded image, (3, H, W) in BGR, as a picture."""
    return image.permute(1, 2, 0).numpy()[..., ::-1]


def readable(sample: Any, truth: bool = False) -> Any:
    """Return rows (x1, y1, x2, y2, label, score), or a label map (H, W)."""
    if 'gt_sem_seg' in sample:
        return (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].numpy()
    found = sample.gt_instances if truth else sample.pred_instances
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)
    scores = torch.ones(len(boxes)) if truth else found.scores
    rows = torch.cat([boxes, found.labels[:, None], scores[:, None]], 1)
    if truth:
        return rows.numpy()
    _, best = nms(boxes, scores, MAX_OVERLAP, score_threshold=MIN_SCORE)
    return rows[best].numpy()


def most_different(scenes: list[Scene], count: int) -> list[Scene]:
    """Return the scenes on which teacher and student agree least."""
    order = sorted(scenes, key=lambda s: disagreement(s.teacher, s.student))
    return order[: -count - 1 : -1]


def disagreement(one: Any, other: Any) -> float:
    """Return the share of differing pixels, or the scores of unmatched boxes."""
    if one.shape == other.shape and one.shape[-1] != 6:
        return float((one != other).mean())
    return sum(unmatched(a, b) for a, b in ((one, other), (other, one)))


def unmatched(boxes: Any, others: Any) -> float:
    """Return the sum of scores of boxes without a like one among others."""
    total = 0.0
    for box in boxes:
        same = [o for o in others if o[4] == box[4] and overlap(box, o) > 0.5]
        total += 0.0 if same else float(box[5])
    return total


def overlap(a: Any, b: Any) -> float:
    """Return the intersection over union of two boxes."""
    corner = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    shared = np.prod(np.clip(corner[1] - corner[0], 0, None))
    areas = [np.prod(box[2:4] - box[:2]) for box in (a, b)]
    return float(shared / (areas[0] + areas[1] - shared))


def feature_maps(
    student: Any, teacher: Any, dataset: Any, count: int
) -> tuple[str, list[Any]]:
    """Return the level on which features differ most, and the scenes there.

    A level's channels are standardised over the first batch; a map is the length
    of a position's vector, and two levels differ by one minus the correlation of
    their values. Each scene comes as (image, teacher, student, difference).
    """
    batch = next(iter(batches(dataset)))
    inputs = student.data_preprocessor(copy_of(batch), False)['inputs']
    both = [model.extract_feat(inputs) for model in (teacher, student)]
    levels = [[standardised(x) for x in pair] for pair in zip(*both)]
    # the top of a pyramid is a handful of cells: nothing to look at
    wide = [i for i, (t, _) in enumerate(levels) if t.shape[-1] >= 8]
    level = max(wide, key=lambda i: distance(*levels[i]).mean())
    theirs, ours = levels[level]
    order = distance(theirs, ours).argsort(descending=True)[:count].tolist()
    maps = [
        (rgb(batch['inputs'][i]), *(length(x[i]) for x in (theirs, ours)))
        + (length(ours[i] - theirs[i]),)
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
