"""What is drawn of the data samples of each framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData

from mmselfdistill.visualization.class_scores import draw_class_scores
from mmselfdistill.visualization.label_maps import draw_label_maps
from mmselfdistill.visualization.samples import draw_samples


@pytest.fixture
def image(tmp_path: Path) -> Any:
    image = np.random.RandomState(0).randint(0, 255, (23, 46, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    return image


def sample(folder: Path, **predictions: Any) -> BaseDataElement:
    return BaseDataElement(metainfo=dict(img_path=str(folder / 'a.png')), **predictions)


def test_of_panoptic_maps_the_classes(image: Any, tmp_path: Path) -> None:
    labels = torch.tensor([2, 1]).repeat_interleave(23).expand(1, 23, 46)
    # the first instance of 2 is the second in the other, and 1 has become 0
    ids = (
        labels + 1000 * (labels == 2),
        2000 * (labels == 2) + labels - 1 * (labels == 1),
    )
    samples = [
        sample(tmp_path, pred_panoptic_seg=PixelData(sem_seg=each)) for each in ids
    ]
    one, other = labels[0].numpy(), np.where(labels[0] == 2, 2, 0)
    expected = draw_label_maps(
        image, one, other, (one == 1).astype(float), 'labels differ (1) or not (0)',
        ('a', 'b', 'c'), None,
    )  # fmt: skip
    found = draw_samples(*samples, dict(classes=('a', 'b', 'c')))
    assert np.array_equal(found, expected)


def test_class_scores(image: Any, tmp_path: Path) -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]])
    found = draw_samples(*(sample(tmp_path, pred_score=each) for each in scores), {})
    assert np.array_equal(found, draw_class_scores(image, *scores.numpy(), None))


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / 'a.png').write_bytes(b'no image')
    each = sample(tmp_path, pred_score=torch.ones(2))
    with pytest.raises(ValueError, match=r'OpenCV cannot decode .*a\.png'):
        draw_samples(each, each, {})


def test_predictions_of_another_kind(image: Any, tmp_path: Path) -> None:
    other = sample(tmp_path, pred_track=torch.zeros(1))
    with pytest.raises(TypeError, match=r'a BaseDataElement has img_path, pred_track$'):
        draw_samples(other, other, {})
    nowhere = BaseDataElement(pred_score=torch.zeros(1))
    with pytest.raises(TypeError, match=r'a BaseDataElement has pred_score$'):
        draw_samples(nowhere, nowhere, {})
