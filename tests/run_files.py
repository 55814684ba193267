"""Files that runs write, for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MAP = 'coco/bbox_mAP'
BOXES = {1: [(0, 0, 10, 10), (20, 0, 30, 10)], 2: [(0, 0, 10, 10)]}


def log(folder: Path, *entries: dict[str, Any]) -> None:
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, entries)))


def epochs(first: int, *times: float) -> list[dict[str, Any]]:
    """Return entries of ten iterations, an epoch each."""
    return [
        dict(
            loss=2.0, loss_sd_logits=0.5, epoch=first + i, step=10 * (first + i), time=t
        )
        for i, t in enumerate(times)
    ]


def truth(folder: Path) -> Path:
    """Write the annotations of two images: class a, and one of class b."""
    labels = {(1, 1): 3}
    annotations = [
        dict(
            id=1 + len(BOXES[1]) * (image - 1) + i,
            image_id=image,
            iscrowd=0,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            category_id=labels.get((image, i), 7),
        )
        for image, boxes in BOXES.items()
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    images = [dict(id=i, width=64, height=64, file_name=f'{i}.jpg') for i in BOXES]
    # labels go by their order here, as in MMDetection, and not by their ids
    categories = [dict(id=7, name='a'), dict(id=3, name='b')]
    path = folder / 'coco.json'
    coco = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(coco))
    return path


def detections(image: int, *rows: tuple[Any, int, float]) -> dict[str, Any]:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float)
    labels = torch.tensor([row[1] for row in rows])
    scores = torch.tensor([row[2] for row in rows])
    found = dict(bboxes=boxes, labels=labels, scores=scores)
    return dict(img_id=image, pred_instances=found)
