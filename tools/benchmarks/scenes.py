"""Scenes of the accuracy benchmark: drawn anew for each seed, with spoilt labels.

The spoilt labels are those of training alone, and the same in COCO's and in ADE20K's
layout: an object has a wrong class, or no label.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from tools.dataset_converters import digits
from tools.dataset_converters.digits import all_or_nothing, write_digits

SIZE = 64  # pixels a side
VAL = 1000  # scenes that every run is measured on
CLASSES = 10
OTHER, BACKGROUND = 0, 1  # in ADE20K's label maps; the digits come after them


def write_scenes(
    root: Path, seed: int, train: int, unlabeled: int, wrong: float, missing: float
) -> None:
    """Write the scenes of one seed, unless they are there as they are drawn now.

    Args:
        root (Path): Folder to write.
        seed (int): Of the drawing and of what is spoilt.
        train (int): Scenes with labels.
        unlabeled (int): Further scenes without labels.
        wrong (float): Share of the objects that get another class, any but their own.
        missing (float): Share of the objects that lose their label.
    """
    wanted = made_of(seed, train, unlabeled, wrong, missing)
    made_of_path = root / 'scenes.json'
    if made_of_path.is_file() and json.loads(made_of_path.read_text()) == wanted:
        return
    with all_or_nothing(root) as partial:
        write_digits(partial, train, VAL, SIZE, seed, unlabeled)
        spoil(partial, seed, wrong, missing)
        (partial / 'scenes.json').write_text(json.dumps(wanted))


def made_of(
    seed: int, train: int, unlabeled: int, wrong: float, missing: float
) -> dict[str, Any]:
    """Return all that scenes depend on, the code that draws them too."""
    source = hashlib.sha256()
    for path in (__file__, str(digits.__file__)):
        source.update(Path(path).read_bytes())
    return dict(
        seed=seed,
        train=train,
        unlabeled=unlabeled,
        wrong=wrong,
        missing=missing,
        val=VAL,
        size=SIZE,
        source=source.hexdigest()[:16],
    )


def spoil(root: Path, seed: int, wrong: float, missing: float) -> None:
    """Give training objects a wrong class, or take their label away, in place."""
    rng = np.random.default_rng((seed, 0xBAD))
    path = root / 'annotations' / 'instances_train2017.json'
    coco = json.loads(path.read_text())
    kept: list[dict[str, Any]] = []
    for each in coco['annotations']:
        draw = rng.random()
        shift = rng.integers(1, CLASSES)
        if draw < missing:
            relabel(root, each, BACKGROUND)
            continue
        if draw < missing + wrong:
            label = (each['category_id'] - 1 + int(shift)) % CLASSES
            each['category_id'] = label + 1
            relabel(root, each, BACKGROUND + 1 + label)
        kept.append(each)
    path.write_text(json.dumps({**coco, 'annotations': kept}))


def relabel(root: Path, annotation: dict[str, Any], value: int) -> None:
    """Give one object's pixels another value in the label map of its scene."""
    name = f'ADE_train_{annotation["image_id"]:08d}.png'
    path = root / 'annotations' / 'training' / name
    label_map: Any = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    mask = coco_mask.decode(annotation['segmentation']).astype(bool)
    # the rim of a digit drawn over it stays ignored
    label_map[mask & (label_map != OTHER)] = value
    cv2.imwrite(str(path), label_map)
