"""How far the confidence of predictions is from how often they are right."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

BINS = 15
IGNORED = 255
LEAST = 0.05  # detections below it are no predictions


def binned(confidence: Tensor, right: Tensor) -> Tensor:
    """Return (3, BINS): how many, the sum of confidences, and how many are right.

    Args:
        confidence (Tensor): (N,), in [0, 1].
        right (Tensor): (N,), of 0 and 1.
    """
    index = (confidence * BINS).long().clamp(max=BINS - 1)
    return torch.stack(
        [
            torch.bincount(index, weights=each.double(), minlength=BINS)
            for each in (torch.ones_like(confidence), confidence, right)
        ]
    )


def calibration_error(bins: Tensor) -> float:
    r"""Return the expected calibration error in % (arXiv 1706.04599).

    :math:`\sum_b n_b / n \cdot |conf_b - acc_b|`, over bins of equal width. NaN of
    nothing.
    """
    count, confidence, right = bins
    return float(100 * (confidence - right).abs().sum() / count.sum())


@METRICS.register_module()
class PixelCalibration(BaseMetric):
    """Calibration error and negative log-likelihood of a segmentor's pixels.

    Over all labelled pixels of the validation scenes; `nll` in nats, `ece` in %.
    """

    default_prefix = 'pixels'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Sum up a batch."""
        for sample in data_samples:
            logits = sample['seg_logits']['data'].flatten(1).double()
            label = sample['gt_sem_seg']['data'].flatten().to(logits.device)
            kept = label != IGNORED
            logs, label = logits.log_softmax(0)[:, kept], label[kept]
            confidence, found = logs.exp().max(0)
            nll = -logs.gather(0, label[None]).sum()
            self.results.append((binned(confidence, found == label), nll))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the figures of all scenes."""
        bins = torch.stack([each for each, _ in results]).sum(0)
        nll = sum(float(each) for _, each in results)
        return dict(ece=calibration_error(bins), nll=nll / float(bins[0].sum()))


@METRICS.register_module()
class BoxCalibration(BaseMetric):
    """Calibration error of detections, in % (D-ECE, arXiv 2004.13546).

    A detection is right if it has the class of an object that no better one has, and
    overlaps it by an IoU of 0.5 or more.
    """

    default_prefix = 'boxes'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Sum up a batch."""
        for sample in data_samples:
            found, real = sample['pred_instances'], sample['gt_instances']
            kept = found['scores'] >= LEAST
            scores, order = found['scores'][kept].sort(descending=True)
            right = matched(
                found['bboxes'][kept][order],
                found['labels'][kept][order],
                torch.as_tensor(real['bboxes']).to(scores),
                real['labels'],
            )
            self.results.append(binned(scores, right))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the figure of all scenes."""
        return dict(ece=calibration_error(torch.stack(results).sum(0)))


def matched(boxes: Tensor, labels: Tensor, real: Tensor, classes: Tensor) -> Tensor:
    """Return which of the detections, best first, are right: (N,)."""
    right = torch.zeros(len(boxes))
    if len(real) == 0:
        return right
    overlaps = bbox_overlaps(boxes, real)
    overlaps[labels[:, None] != classes[None].to(labels.device)] = 0
    for index, row in enumerate(overlaps):
        best, which = row.max(0)
        if best >= 0.5:
            right[index] = 1
            overlaps[:, which] = 0
    return right
