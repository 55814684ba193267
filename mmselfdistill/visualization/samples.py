"""The data samples of student and teacher in one picture."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
from matplotlib import rc_context
from mmengine.fileio import get

from mmselfdistill.visualization.boxes import draw_boxes
from mmselfdistill.visualization.class_scores import draw_class_scores
from mmselfdistill.visualization.differences import (
    Boxes,
    class_probabilities,
    missing_overlap,
)
from mmselfdistill.visualization.label_maps import draw_label_maps

_THING = 1000  # MMDetection's panoptic ids are class + 1000 * instance


def draw_samples(
    student: Any,
    teacher: Any,
    meta: Mapping[str, Any],
    score_thr: float = 0.3,
    backend_args: dict[str, Any] | None = None,
) -> Any:
    """Draw the predictions of student and teacher for one image.

    Args:
        student (BaseDataElement): The frameworks' data sample, with ``img_path``.
        teacher (BaseDataElement): The same of the teacher.
        meta (Mapping): The ``metainfo`` of the data set: ``classes``, ``palette``.
        score_thr (float): Boxes below it are left out. Defaults to 0.3.
        backend_args (dict, optional): Of the file backend that the image is read by.
            Defaults to None.

    Returns:
        np.ndarray: The picture, of uint8, RGB.

    Raises:
        TypeError: If the sample holds no predictions that can be drawn.
    """
    draw = next((d for key, d in _DRAWN.items() if key in student), None)
    if draw is None or 'img_path' not in student:
        found = ', '.join(sorted(student.all_keys())) or 'nothing'
        raise TypeError(
            'expected boxes, masks, label maps or class scores, with the img_path '
            f'of their image, but a {type(student).__name__} has {found}'
        )
    image = _read(student.img_path, backend_args)
    # a class may have a $ in its name
    with rc_context({'text.parse_math': False}):
        return draw(image, student, teacher, meta, score_thr)


def _read(path: str, backend_args: dict[str, Any] | None) -> Any:
    import mmcv

    content = get(path, backend_args=backend_args)
    try:
        return mmcv.imfrombytes(content, channel_order='rgb')
    except Exception as error:  # OpenCV's own
        raise ValueError(f'OpenCV cannot decode the image {path}') from error


def _boxes(
    image: Any, student: Any, teacher: Any, meta: Mapping[str, Any], score_thr: float
) -> Any:
    one, other = (Boxes.of(e.pred_instances, score_thr) for e in (student, teacher))
    return draw_boxes(image, one, other, meta.get('classes'), score_thr)


def _labels(
    image: Any, student: Any, teacher: Any, meta: Mapping[str, Any], _: float
) -> Any:
    one, other = (_label_map(each) for each in (student, teacher))
    difference, meaning = one != other, 'labels differ (1) or not (0)'
    if 'seg_logits' in student:
        sides = (class_probabilities(e.seg_logits.data) for e in (student, teacher))
        difference = missing_overlap(*sides).cpu().numpy()
        meaning = '1 − overlap of the class probabilities'
    return draw_label_maps(
        _as_large(image, one),
        one,
        other,
        difference.astype(np.float32),
        meaning,
        meta.get('classes'),
        meta.get('palette'),
    )


def _label_map(sample: Any) -> Any:
    if 'pred_panoptic_seg' in sample:
        labels = sample.pred_panoptic_seg.sem_seg % _THING
    else:
        labels = sample.pred_sem_seg.data
    return labels[0].long().cpu().numpy()


def _scores(
    image: Any, student: Any, teacher: Any, meta: Mapping[str, Any], _: float
) -> Any:
    one, other = (e.pred_score.float().cpu().numpy() for e in (student, teacher))
    return draw_class_scores(image, one, other, meta.get('classes'))


def _as_large(image: Any, labels: Any) -> Any:
    """Return the image in the size of its label map, which pipelines may change."""
    if image.shape[:2] == labels.shape:
        return image
    import mmcv

    return mmcv.imresize(image, labels.shape[::-1])


# what a data sample holds, and how it is drawn: the first that it has
_DRAWN = {
    'pred_panoptic_seg': _labels,
    'pred_instances': _boxes,
    'pred_sem_seg': _labels,
    'pred_score': _scores,
}
