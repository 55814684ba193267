"""What differs between two predictions of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SAME_PLACE = 0.5  # of two boxes, the IoU from which they are of one object


def class_probabilities(scores: Tensor) -> Tensor:
    """Return the probability of each class from a segmentor's ``seg_logits``.

    MMSegmentation saves three kinds of them under that name:

    - one channel: the sigmoid of the foreground, next to a background;
    - no value below 0: the scores of a mask classifier, or averaged probabilities,
      which are divided by their sum;
    - otherwise logits, of which the softmax is taken.

    Args:
        scores (Tensor): (C, H, W).

    Returns:
        Tensor: (C, H, W) with a sum of 1 over C; (2, H, W) of one channel.
    """
    scores = scores.float()
    if len(scores) == 1:
        return torch.cat([1 - scores, scores])
    if scores.min() >= 0:
        return scores / scores.sum(0).clamp(min=1e-12)
    return scores.softmax(0)


def missing_overlap(first: Tensor, second: Tensor) -> Tensor:
    r"""Return how far two maps of probabilities are apart, at each pixel.

    .. math::
        1 - \sum_c \min(p_c, q_c) = \frac{1}{2} \sum_c |p_c - q_c|,

    the total variation: 0 where they are equal, 1 where they share no class.

    Args:
        first (Tensor): (C, H, W).
        second (Tensor): (C, H, W).

    Returns:
        Tensor: (H, W), from 0 to 1.
    """
    return (first - second).abs().sum(0) / 2


@dataclass
class Boxes:
    """Predicted boxes of an image, in its pixels.

    Args:
        corners (np.ndarray): (N, 4): left, top, right, bottom.
        labels (np.ndarray): (N,).
        scores (np.ndarray): (N,).
        masks (np.ndarray, optional): (N, H, W) of bool. Defaults to None.
    """

    corners: Any
    labels: Any
    scores: Any
    masks: Any = None

    @classmethod
    def of(cls, instances: Any, score_thr: float) -> Boxes:
        """Take the boxes of MMDetection's ``pred_instances``.

        Args:
            instances (InstanceData): With ``bboxes``, ``labels`` and ``scores``.
            score_thr (float): Those below it are left out.
        """
        kept = instances[instances.scores >= score_thr].cpu()
        boxes = getattr(kept.bboxes, 'tensor', kept.bboxes)
        masks = kept.masks if 'masks' in kept else None
        if masks is not None and not boxes.any():
            # models without boxes, such as SOLO, fill them with zeros
            from mmdet.structures.mask import mask2bbox

            boxes = mask2bbox(masks)
        return cls(
            boxes.float().numpy(),
            kept.labels.numpy(),
            kept.scores.float().numpy(),
            None if masks is None else np.asarray(masks, bool),
        )

    def __len__(self) -> int:
        return len(self.corners)

    def area(self, shape: tuple[int, int]) -> Any:
        """Return where any mask is, (H, W) of bool."""
        return np.zeros(shape, bool) if self.masks is None else self.masks.any(0)


class Matches(NamedTuple):
    """Which boxes of two predictions are of one object.

    Args:
        same (list[tuple[int, int]]): Pairs of one class.
        other (list[tuple[int, int]]): Pairs of two classes.
        first (list[int]): Those of the first alone.
        second (list[int]): Those of the second alone.
    """

    same: list[tuple[int, int]]
    other: list[tuple[int, int]]
    first: list[int]
    second: list[int]


def match(first: Boxes, second: Boxes) -> Matches:
    """Pair boxes whose IoU is at least 0.5, each with one other at most.

    The pairs of one class are as many as can be; among such pairings, the sum of the
    IoUs is the largest.
    """
    from mmdet.structures.bbox import bbox_overlaps
    from scipy.optimize import linear_sum_assignment

    corners = [torch.as_tensor(each.corners) for each in (first, second)]
    ious = bbox_overlaps(*corners).numpy()
    one_class = first.labels[:, None] == second.labels[None]
    # a class weighs more than all the IoUs together
    weight = 1 + min(ious.shape)
    gain = np.where(ious >= SAME_PLACE, ious + weight * one_class, 0)
    pairs = [
        (int(i), int(j))
        for i, j in zip(*linear_sum_assignment(gain, maximize=True))
        if gain[i, j] > 0
    ]
    paired = [{pair[side] for pair in pairs} for side in (0, 1)]
    return Matches(
        [pair for pair in pairs if one_class[pair]],
        [pair for pair in pairs if not one_class[pair]],
        [i for i in range(len(first)) if i not in paired[0]],
        [j for j in range(len(second)) if j not in paired[1]],
    )
