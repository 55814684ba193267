"""Draw single handwritten digits and write them in ImageNet's folder layout.

The digits and their look are those of `digits.py`, one in each image; training and
validation images draw on disjoint digits. Under the given folder:

    {train,val}/{0,...,9}/*.png
    digits_imagenet.json            the settings

    python -m tools.dataset_converters.digits_imagenet data/digits_imagenet
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tools.dataset_converters.digits import (
    INK,
    Floats,
    Image,
    add_clutter,
    all_or_nothing,
    background,
    colour,
    digits_of,
    glyph,
    paint,
    place,
)

SPLITS = ('train', 'val')
MADE_BY = 'digits_imagenet.json'


def draw(rng: np.random.Generator, digit: Floats, size: int) -> Image:
    """Draw one digit over a cluttered background: (size, size, 3), BGR."""
    canvas = background(rng, size)
    add_clutter(rng, canvas)
    alpha = glyph(rng, digit, size * rng.uniform(0.4, 0.7))
    alpha = place(rng, size, alpha, np.zeros(0, np.float32))
    paint(canvas, alpha * rng.uniform(0.8, 1), colour(rng, *INK))
    canvas += rng.normal(0, rng.uniform(3, 14), canvas.shape)
    image: npt.NDArray[np.uint8] = np.clip(canvas, 0, 255).astype(np.uint8)
    return image


def write_images(root: Path, train: int, val: int, size: int, seed: int) -> None:
    """Write the whole set, all or nothing, in place of an earlier one.

    Raises:
        SystemExit: If the folder holds something else, or a class has no image.
    """
    if root.exists() and any(root.iterdir()) and not (root / MADE_BY).is_file():
        sys.exit(f'{root} is not empty and was not written by this tool.')
    with all_or_nothing(root) as partial:
        for split, count in zip(SPLITS, (train, val)):
            write_split(partial / split, split, count, size, seed)
            # classes are numbered by the folders that are there
            lost = {*map(str, range(10))} - {
                p.name for p in (partial / split).iterdir()
            }
            if lost:
                sys.exit(
                    f'--{split}: {count} images have none of class '
                    f'{", ".join(sorted(lost))}; 100 or more have all ten.'
                )
        settings = dict(train=train, val=val, size=size, seed=seed)
        (partial / MADE_BY).write_text(json.dumps(settings))


def write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    """Draw and write the images of one split, in a folder for each label."""
    digits, labels = digits_of(split)
    for number in range(count):
        # a stream per image: an image does not depend on how many there are
        rng = np.random.default_rng((seed, SPLITS.index(split), number))
        index = rng.integers(len(digits))
        inside = folder / str(labels[index])
        inside.mkdir(parents=True, exist_ok=True)
        image = draw(rng, digits[index], size)
        cv2.imwrite(str(inside / f'{number:08d}.png'), image)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', type=Path, help='folder, e.g. data/digits_imagenet')
    parser.add_argument('--train', type=int, default=2000, help='training images')
    parser.add_argument('--val', type=int, default=1000, help='validation images')
    parser.add_argument('--size', type=int, default=32, help='pixels a side')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.val) < 10 or args.size < 32:
        sys.exit('--train and --val must be at least 10, --size at least 32 pixels.')
    write_images(args.root, args.train, args.val, args.size, args.seed)
    print(f'{args.train} and {args.val} images of {args.size} pixels: {args.root}')


if __name__ == '__main__':
    main()
