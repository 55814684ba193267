"""Saved predictions: how sure they are, how right, and the metric of each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from mmengine.fileio import load

from mmselfdistill.commands.quiet import quietly
from mmselfdistill.visualization.differences import class_probabilities

BINS = 10  # of the confidence
IGNORED = 255  # MMSegmentation's label of pixels that do not count


@dataclass
class Calibration:
    r"""Confidence against precision, in bins of equal width.

    The error is the expected calibration error over bins :math:`b` of
    :math:`n_b` of :math:`n` predictions,

    .. math:: \sum_b \frac{n_b}{n} \, |precision_b - confidence_b|

    Of detections (D-ECE), a box is right if it matches an object of its class at an IoU
    of 0.5 (arXiv 2004.13546; here over the confidence alone). Of segmentations, a pixel
    is right if its class is.

    Args:
        confidence (np.ndarray): Mean of each bin that is not empty.
        precision (np.ndarray): Share of right ones in it.
        count (np.ndarray): Predictions in it.
    """

    confidence: Any
    precision: Any
    count: Any

    @property
    def error(self) -> float:
        """The error, 0 to 1; nan without a prediction."""
        total = self.count.sum()
        gaps = self.count * np.abs(self.precision - self.confidence)
        return float(gaps.sum() / total) if total else float('nan')


@dataclass
class Judged:
    """What predictions came to: AP or IoU of each class in percent, and calibration."""

    classes: dict[str, float]
    calibration: Calibration


class Bins:
    """Counts predictions by confidence.

    Args:
        bins (int): How many, over [0, 1].
    """

    def __init__(self, bins: int) -> None:
        self.edges = np.linspace(0, 1, bins + 1)
        self.sums = np.zeros((3, bins))  # count, confidence, right

    def add(self, confidence: Any, right: Any) -> None:
        """Add predictions, both (N,)."""
        confidence, right = np.asarray(confidence, float), np.asarray(right, float)
        for row, weights in enumerate((None, confidence, right)):
            self.sums[row] += np.histogram(confidence, self.edges, weights=weights)[0]

    def calibration(self) -> Calibration:
        """Return what was added."""
        count, confidence, right = self.sums[:, self.sums[0] > 0]
        return Calibration(confidence / count, right / count, count)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Read what MMEngine's ``DumpResults`` or ``DumpDetResults`` has written.

    Raises:
        ValueError: If the file holds no such thing.
    """
    try:
        found = load(str(path))
    except Exception as error:
        raise ValueError(
            f'--predictions: cannot read {str(path)!r}: {error}'
        ) from error
    known = ('pred_instances', 'pred_sem_seg')
    good = isinstance(found, list) and found and isinstance(found[0], dict)
    needed = {'bboxes', 'labels', 'scores'}
    if good and 'pred_instances' in found[0]:
        good = 'img_id' in found[0] and needed <= found[0]['pred_instances'].keys()
    if not good or not any(key in found[0] for key in known):
        raise ValueError(
            f'--predictions: {str(path)!r} holds no predictions as MMEngine saves them '
            f'(DumpResults): a list of dicts with {" or ".join(known)}, and boxes with '
            f'their img_id, {", ".join(sorted(needed))}'
        )
    return found


def judge(
    samples: Sequence[dict[str, Any]],
    annotations: Path | None,
    min_score: float,
    names: Sequence[str] = (),
    bins: int = BINS,
    by_id: bool = False,
) -> Judged:
    """Judge the predictions of a detector or a segmentor.

    Args:
        samples (Sequence[dict]): The predictions, an image each.
        annotations (Path, optional): COCO's, of the images that a detector saw.
        min_score (float): Boxes below it are left out of the calibration.
        names (Sequence[str]): Of the classes, in the order of their labels. Defaults to
            (): a segmentor's are numbered, and boxes have all categories of the
            annotations, in their order there.
        bins (int): Of the confidence. Defaults to 10.
        by_id (bool): Whether labels are numbered by the ids of the categories, and not
            by their order in the annotations. Defaults to False.

    Raises:
        ValueError: If there are boxes without annotations of their images, or label
            maps without truth or scores.
    """
    if 'pred_instances' not in samples[0]:
        return _judge_pixels(samples, names, bins)
    if annotations is None:
        raise ValueError(
            '--annotations: boxes need the COCO annotations of their images'
        )
    if not annotations.is_file():
        raise ValueError(f'--annotations: there is no file {str(annotations)!r}')
    return _judge_boxes(samples, annotations, min_score, names, bins, by_id)


def _judge_boxes(
    samples: Sequence[dict[str, Any]],
    annotations: Path,
    min_score: float,
    names: Sequence[str],
    bins: int,
    by_id: bool,
) -> Judged:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with quietly():
        try:
            truth = COCO(str(annotations))
            truth.getCatIds(truth.getAnnIds()[:0])
        except Exception as error:
            raise ValueError(
                f'--annotations: {str(annotations)!r} is no file as COCO has: '
                f'{type(error).__name__}: {error}'
            ) from error
        if by_id:
            truth.dataset['categories'].sort(key=lambda each: each['id'])
        categories = _categories(truth, annotations, names)
        found = _boxes_of(samples, truth, annotations, categories)
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
    parameters = evaluation.params
    # (IoU, recall, class, area, most boxes): all areas, 100 boxes
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    classes = {}
    for index, category in enumerate(parameters.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        if values.size:
            classes[truth.cats[category]['name']] = 100 * float(values.mean())
    counts = Bins(bins)
    # an entry for each class, area and image; the first IoU is 0.5
    images = len(parameters.imgIds)
    areas = len(parameters.areaRng)
    for index, image in enumerate(evaluation.evalImgs):
        if image is None or (index // images) % areas != 0:
            continue
        scores = np.array(image['dtScores'])
        counted = (scores >= min_score) & ~image['dtIgnore'][0].astype(bool)
        counts.add(scores[counted], (image['dtMatches'][0] > 0)[counted])
    return Judged(classes, counts.calibration())


def _categories(truth: Any, annotations: Path, names: Sequence[str]) -> list[int]:
    """Return the id of each label's category."""
    # as MMDetection does: in the order of the file, whatever the order of the names
    found: list[int] = truth.getCatIds(catNms=list(names))
    if not found:
        known = ', '.join(each['name'] for each in truth.dataset['categories'][:10])
        raise ValueError(
            f"--annotations: {str(annotations)!r} has none of the run's classes "
            f'({", ".join(names[:10])}), but {known}'
        )
    return found


def _boxes_of(
    samples: Sequence[dict[str, Any]],
    truth: Any,
    annotations: Path,
    categories: Sequence[int],
) -> list[dict[str, Any]]:
    found = []
    for sample in samples:
        if sample['img_id'] not in truth.imgs:
            raise ValueError(
                f'--annotations: {str(annotations)!r} knows no image '
                f'{sample["img_id"]!r}, for which there are predictions'
            )
        boxes = sample['pred_instances']
        labels = np.asarray(boxes['labels'])
        if labels.size and labels.max() >= len(categories):
            raise ValueError(
                f'--annotations: {len(categories)} categories in {str(annotations)!r} '
                f'are classes of the run, but a prediction of class {labels.max()}'
            )
        for box, label, score in zip(
            _sides(boxes), labels, np.asarray(boxes['scores'])
        ):
            found.append(
                dict(
                    image_id=sample['img_id'],
                    category_id=categories[label],
                    bbox=box,
                    score=float(score),
                )
            )
    if not found:
        raise ValueError('--predictions: no box in any image')
    return found


def _sides(boxes: dict[str, Any]) -> list[list[float]]:
    """Return left, top, width and height of each box, or of its mask."""
    corners = np.array(boxes['bboxes'], float).reshape(-1, 4)
    masks = boxes.get('masks')
    if corners.any() or masks is None or not len(masks):
        corners[:, 2:] -= corners[:, :2]
        return corners.tolist()
    # models without boxes, such as SOLO, fill them with zeros
    from pycocotools import mask as rle

    if not isinstance(masks[0], dict):
        masks = [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return rle.toBbox(masks).tolist()


def _judge_pixels(
    samples: Sequence[dict[str, Any]], names: Sequence[str], bins: int
) -> Judged:
    missing = {'gt_sem_seg', 'seg_logits'} - samples[0].keys()
    if missing:
        raise ValueError(
            f'--predictions: no {" and ".join(sorted(missing))} in it; save them by '
            'DumpResults in test_evaluator, with LoadAnnotations in the test pipeline'
        )
    counts = Bins(bins)
    overlaps = None
    for sample in samples:
        chances = class_probabilities(torch.as_tensor(sample['seg_logits']['data']))
        truth = torch.as_tensor(sample['gt_sem_seg']['data'])[0].long()
        # not the likeliest, where a foreground has a threshold of its own
        label = torch.as_tensor(sample['pred_sem_seg']['data'])[0].long()
        sure = chances.gather(0, label[None])[0]
        # what is of no class cannot be judged
        kept = (truth != IGNORED) & (truth < len(chances))
        sure, label, truth = sure[kept], label[kept], truth[kept]
        counts.add(sure.numpy(), (label == truth).numpy())
        size = len(chances)
        pairs = torch.bincount(truth * size + label, minlength=size * size)
        overlaps = pairs if overlaps is None else overlaps + pairs
    assert overlaps is not None
    table = overlaps.view(size, size).double()
    union = table.sum(0) + table.sum(1) - table.diag()
    ious = (100 * table.diag() / union).tolist()
    if len(names) != size:
        names = [f'class {i}' for i in range(size)]
    classes = {name: iou for name, iou in zip(names, ious) if iou == iou}
    return Judged(classes, counts.calibration())
