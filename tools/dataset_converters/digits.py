"""Draw scenes of handwritten digits and write them as COCO and as ADE20K.

The digits are scikit-learn's (UCI, 8x8, in its wheel: nothing is downloaded).
Training and validation scenes draw on disjoint digits. Under the given folder:

    annotations/instances_{train,val}2017.json, {train,val}2017/*.jpg       COCO
    annotations/{training,validation}/*.png, images/{training,...}/*.jpg    ADE20K
    unlabeled2017/*.jpg                             further scenes, without labels

Boxes and masks (RLE) cover the visible part of a digit. In ADE20K's label maps 0
is 'other' (here the soft rim of a stroke, ignored by `reduce_zero_label`), 1 is
the background and 2 to 11 are the digits.

    python tools/dataset_converters/digits.py data/digits --train 1600 --val 400
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple
from uuid import uuid4

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from rich.progress import track
from sklearn.datasets import load_digits

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

VERSION = 1  # of the drawing: folders written by another version are drawn again
TRAIN_SHARE = 2 / 3  # of scikit-learn's 1,797 digits; validation draws on the rest
MIN_VISIBLE = 0.6  # of each digit's own area, whatever is drawn over it
INK = (150, 255)  # lighter than any background, as in the originals
SPLITS = (('train', 'training'), ('val', 'validation'))  # COCO's, ADE20K's name


class Instance(NamedTuple):
    """One digit in a scene."""

    label: int
    mask: npt.NDArray[np.bool_]  # (H, W), its visible part


class Scene(NamedTuple):
    """One image with its annotations."""

    image: Image  # (H, W, 3), BGR
    instances: list[Instance]
    label_map: Image  # (H, W): 0 other, 1 background, 2-11 digits


def digits_of(split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the digits (N, 8, 8) in [0, 1] and labels (N,) of 'train' or 'val'."""
    data = load_digits()
    first_val = round(len(data.target) * TRAIN_SHARE)
    part = slice(first_val) if split == 'train' else slice(first_val, None)
    return (data.images[part] / 16).astype(np.float32), data.target[part]


def glyph(rng: np.random.Generator, digit: Floats, height: float) -> Floats:
    """Return one digit's opacity in [0, 1], upsampled, turned, sheared, scaled."""
    smooth = cv2.resize(digit, (48, 48), interpolation=cv2.INTER_CUBIC)
    smooth = np.pad(cv2.GaussianBlur(smooth, (0, 0), 2.0), 12)
    angle, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    scale, narrow = height / 48, rng.uniform(0.8, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * turn @ np.array([[narrow, shear], [0.0, 1.0]])
    side = int(np.ceil(72 * scale))
    shift = np.full(2, side / 2) - linear @ np.full(2, 36.0)
    # shrinking without a blur first would alias
    if scale < 0.5:
        smooth = cv2.GaussianBlur(smooth, (0, 0), 0.4 / scale)
    alpha = cv2.warpAffine(smooth, np.c_[linear, shift], (side, side))
    threshold = rng.uniform(0.4, 0.6)  # the width of the pen
    alpha = np.clip((alpha - threshold) * 6 + 0.5, 0, 1)
    rows, columns = np.any(alpha > 0, 1).nonzero()[0], np.any(alpha > 0, 0).nonzero()[0]
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def background(rng: np.random.Generator, size: int) -> Floats:
    """Return a coloured gradient with a cloudy texture, (size, size, 3)."""
    corners = rng.uniform(20, 120, 3) + rng.uniform(-30, 30, (2, 2, 3))
    clouds = rng.normal(0, 10, (6, 6, 3))
    base = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    base += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    return base.astype(np.float32)


def colour(rng: np.random.Generator, low: int, high: int) -> Floats:
    """Return a random colour with all three channels between two values."""
    return rng.uniform(low, high, 3).astype(np.float32)


def paint(canvas: Floats, alpha: Floats, tone: Floats) -> None:
    """Lay a colour over the canvas with the given opacity, in place."""
    canvas += alpha[..., None] * (tone - canvas)


def add_clutter(rng: np.random.Generator, canvas: Floats) -> None:
    """Draw what is no digit: patches, and strokes of a digit's width."""
    size = len(canvas)
    for _ in range(rng.integers(1, 4)):
        alpha = np.zeros((size, size), np.float32)
        centre, axes = rng.integers(0, size, 2), rng.integers(size // 16, size // 4, 2)
        cv2.ellipse(alpha, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        paint(canvas, alpha * np.float32(rng.uniform(0.2, 0.6)), colour(rng, 0, 200))
    for _ in range(rng.integers(1, 4)):
        alpha = np.zeros((size, size), np.float32)
        corners = rng.uniform(0, size, 2) + rng.normal(0, size / 7, (3, 2))
        t = np.linspace(0, 1, 16)[:, None]
        a, b, c = corners
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        width = int(rng.integers(1, max(2, size // 24) + 1))
        points = [(curve * 8).astype(np.int32)]
        cv2.polylines(alpha, points, False, 1.0, width, cv2.LINE_AA, shift=3)
        paint(canvas, np.clip(alpha, 0, 1), colour(rng, *INK))


def place(rng: np.random.Generator, size: int, alpha: Floats, near: Floats) -> Floats:
    """Return the opacity on a whole canvas, (size, size), at a random place."""
    room = np.maximum(size - np.array(alpha.shape), 1)
    corner = rng.uniform(0, room)
    if near.size and rng.random() < 0.25:
        corner = near + rng.normal(0, 0.5 * max(alpha.shape), 2)
    y, x = np.clip(corner, 0, room - 1).astype(int)
    whole = np.zeros((size, size), np.float32)
    part = alpha[: size - y, : size - x]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def draw_scene(
    rng: np.random.Generator,
    digits: Floats,
    labels: npt.NDArray[np.int64],
    size: int,
) -> Scene:
    """Draw one scene: background, clutter, overlapping digits, noise."""
    canvas = background(rng, size)
    add_clutter(rng, canvas)
    label_map = np.ones((size, size), np.uint8)
    drawn: list[Instance] = []
    areas: list[float] = []
    near = np.zeros(0, np.float32)
    for _ in range(rng.integers(2, 5)):
        index = rng.integers(len(digits))
        height = size * np.exp(rng.uniform(np.log(0.3), np.log(0.55)))
        alpha = place(rng, size, glyph(rng, digits[index], height), near)
        mask = alpha > 0.5
        left = [instance.mask & ~mask for instance in drawn]
        if any(m.sum() < MIN_VISIBLE * area for m, area in zip(left, areas)):
            continue
        drawn = [i._replace(mask=m) for i, m in zip(drawn, left)]
        drawn.append(Instance(int(labels[index]), mask))
        areas.append(float(mask.sum()))
        near = np.argwhere(mask)[0].astype(np.float32)
        paint(canvas, alpha * rng.uniform(0.8, 1), colour(rng, *INK))
        label_map[alpha > 0.15] = 0
        label_map[mask] = 2 + labels[index]
    if rng.random() < 0.5:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8))
    canvas += rng.normal(0, rng.uniform(3, 14), canvas.shape)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), drawn, label_map)


def coco_annotation(instance: Instance, image_id: int, number: int) -> dict[str, Any]:
    """Return one entry of COCO's `annotations`; the mask as compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(instance.mask))
    return dict(
        id=number,
        image_id=image_id,
        category_id=instance.label + 1,
        bbox=[float(v) for v in coco_mask.toBbox(rle)],
        area=float(instance.mask.sum()),
        iscrowd=0,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
    )


def write_split(root: Path, split: int, count: int, size: int, seed: int) -> None:
    """Draw and write all scenes of one split in both layouts."""
    name, ade_name = SPLITS[split]
    ade_images = root / 'images' / ade_name
    ade_labels = root / 'annotations' / ade_name
    for folder in (root / f'{name}2017', ade_images, ade_labels):
        folder.mkdir(parents=True)
    digits, labels = digits_of(name)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in track(range(1, count + 1), f'{name}: scenes'):
        # a stream per scene: a scene does not depend on how many there are
        rng = np.random.default_rng((seed, split, number))
        scene = draw_scene(rng, digits, labels, size)
        _, jpeg = cv2.imencode('.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        file_name, ade = f'{number:012d}.jpg', f'ADE_{name}_{number:08d}'
        (root / f'{name}2017' / file_name).write_bytes(jpeg.tobytes())
        (ade_images / f'{ade}.jpg').write_bytes(jpeg.tobytes())
        cv2.imwrite(str(ade_labels / f'{ade}.png'), scene.label_map)
        images.append(dict(id=number, file_name=file_name, height=size, width=size))
        for instance in scene.instances:
            annotations.append(coco_annotation(instance, number, len(annotations) + 1))
    categories = [dict(id=i + 1, name=str(i), supercategory='digit') for i in range(10)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    target = root / 'annotations' / f'instances_{name}2017.json'
    target.write_text(json.dumps(coco))


def write_unlabeled(root: Path, first: int, count: int, size: int, seed: int) -> None:
    """Draw and write scenes of the training digits, from a number on."""
    folder = root / 'unlabeled2017'
    folder.mkdir(parents=True)
    digits, labels = digits_of('train')
    for number in track(range(first, first + count), 'unlabeled: scenes'):
        rng = np.random.default_rng((seed, 0, number))
        scene = draw_scene(rng, digits, labels, size)
        path = str(folder / f'{number:012d}.jpg')
        cv2.imwrite(path, scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])


@contextlib.contextmanager
def all_or_nothing(root: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of another if all goes well.

    Two processes may write the same set at once: each writes to a folder of its own,
    and that of the first is kept.
    """
    root = root.resolve()  # a link stays one
    token = uuid4().hex[:8]
    partial, former = (
        root.with_name(f'{root.name}.{token}.{end}') for end in ('partial', 'former')
    )
    replaces = root.exists()
    try:
        yield partial
        if replaces:
            # a folder that is half deleted would be nobody's
            root.rename(former)
        if not root.exists():
            partial.rename(root)
    finally:
        if former.exists() and not root.exists():
            former.rename(root)
        for folder in (partial, former):
            shutil.rmtree(folder, ignore_errors=True)


def write_digits(
    root: Path, train: int, val: int, size: int, seed: int, unlabeled: int = 0
) -> bool:
    """Write the whole set, all or nothing; return whether anything was drawn."""
    # the folder that is written may be the one that we are in
    root = root.resolve()
    wanted = dict(version=VERSION, train=train, val=val, size=size, seed=seed)
    if unlabeled:
        wanted['unlabeled'] = unlabeled
    made_by = root / 'digits.json'
    if made_by.is_file() and json.loads(made_by.read_text()) == wanted:
        return False
    if root.exists() and any(root.iterdir()) and not made_by.is_file():
        raise SystemExit(f'{root} is not empty and was not written by this tool.')
    with all_or_nothing(root) as partial:
        for split, count in enumerate((train, val)):
            write_split(partial, split, count, size, seed)
        if unlabeled:
            write_unlabeled(partial, train + 1, unlabeled, size, seed)
        (partial / made_by.name).write_text(json.dumps(wanted))
    found = json.loads(made_by.read_text())
    if found != wanted:
        raise SystemExit(
            f'{root}: another call wrote {found} there meanwhile, so this one wrote '
            f'nothing. Wanted: {wanted}.'
        )
    return True


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', type=Path, help='folder to write, e.g. data/digits')
    parser.add_argument('--train', type=int, default=1600, help='training scenes')
    parser.add_argument('--val', type=int, default=400, help='validation scenes')
    parser.add_argument(
        '--unlabeled', type=int, default=0, help='further training scenes, no labels'
    )
    parser.add_argument('--size', type=int, default=128, help='pixels a side')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.val) < 1 or args.size < 32:
        sys.exit('--train and --val must be at least 1, --size at least 32 pixels.')
    if min(args.unlabeled, args.seed) < 0:
        sys.exit('--unlabeled and --seed must be at least 0.')
    if args.root.is_file():
        sys.exit(f'{args.root} is a file: name a folder.')
    drawn = write_digits(
        args.root, args.train, args.val, args.size, args.seed, args.unlabeled
    )
    scenes = f'{args.train} training and {args.val} validation scenes'
    scenes += f', {args.unlabeled} without labels' if args.unlabeled else ''
    state = 'written to' if drawn else 'already in'
    print(f'{scenes} of {args.size} pixels {state} {args.root}')


if __name__ == '__main__':
    main()
