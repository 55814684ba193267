"""Batches of images without labels, each a function of its number alone."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from torch.utils.data import DataLoader, Dataset

from mmselfdistill.images.pipeline import Transform, seed_parts
from mmselfdistill.seeds import seed_of, seeded

SKIPPED = 'sd_skipped'


class Batches:
    """An endless iterator over batches of this rank.

    Image and random numbers of the n-th item depend on the seed and n alone: a resumed
    run gets what the run that was not interrupted would have got.

    Args:
        images (Sequence[str]): Paths of the images.
        pipeline (Sequence[Callable]): Their transforms.
        batch_size (int): Images of a batch, on each rank.
        seed (int): The run's.
        num_workers (int): Processes that load them. Defaults to 0.
        skip_broken (bool): Whether an image that cannot be loaded is counted and
            replaced by the next one. Defaults to False: it ends the run.

    Attributes:
        skip_broken (bool): As given.
        skipped (int): The number of images that could not be loaded.
    """

    def __init__(
        self,
        images: Sequence[str],
        pipeline: Sequence[Transform],
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        skip_broken: bool = False,
    ) -> None:
        self.skipped = 0
        self._drawn = 0
        self._dataset = _Items(images, pipeline, seed, skip_broken)
        self._batch_size = batch_size
        self._num_workers = num_workers
        self.skip_broken = skip_broken
        self._iterator: Iterator[dict[str, Any]] | None = None

    @property
    def drawn(self) -> int:
        """The number of batches so far; set it to go on from there."""
        return self._drawn

    @drawn.setter
    def drawn(self, count: int) -> None:
        self._drawn = count
        self.close()

    @property
    def seed(self) -> int:
        """What order and transforms depend on."""
        return self._dataset.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._dataset.seed = seed
        self.close()

    def close(self) -> None:
        """End the processes that load images; the next batch starts others.

        Left to the garbage collector, each of them keeps it waiting for 5 s.
        """
        self._iterator = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch: lists of images and of data samples."""
        if self._iterator is None:
            loader: Any = DataLoader(
                self._dataset,
                batch_size=self._batch_size,
                sampler=_numbers(self._drawn, self._batch_size),
                num_workers=self._num_workers,
                collate_fn=pseudo_collate,
                # else it is drawn from the student's stream
                generator=torch.Generator(),
            )
            self._iterator = iter(loader)
        batch = next(self._iterator)
        self._drawn += 1
        self._count(sum(batch.pop(SKIPPED)))
        return batch

    def _count(self, skipped: int) -> None:
        if skipped and not self.skipped:
            print_log(
                'unlabeled: an image could not be loaded, and was skipped; the number '
                'of those so far is logged as sd_unlabeled_skipped',
                logger='current',
            )
        self.skipped += skipped


def _numbers(begin: int, batch_size: int) -> Iterator[int]:
    """Yield the numbers of this rank's items, without end."""
    rank, world = get_rank(), get_world_size()
    for batch in itertools.count(begin):
        first = (batch * world + rank) * batch_size
        yield from range(first, first + batch_size)


class _Items(Dataset[Any]):
    """The n-th image of an endless sequence of shuffled rounds."""

    def __init__(
        self,
        images: Sequence[str],
        pipeline: Sequence[Transform],
        seed: int,
        skip_broken: bool,
    ) -> None:
        self._images = images
        self._pipeline = pipeline
        self.seed = seed
        self._skip_broken = skip_broken
        self._order: tuple[Any, np.ndarray[Any, Any]] = (None, np.empty(0))
        self._channels = 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the item of a number.

        Raises:
            ValueError: If no image can be loaded.
        """
        for skipped in range(len(self._images) if self._skip_broken else 1):
            path = self._path(number, skipped)
            try:
                item = self._loaded(path, number)
                self._check(item)
            except Exception as error:
                reason = f'{type(error).__name__}: {error}'
                continue
            item[SKIPPED] = skipped
            return item
        raise ValueError(f'unlabeled.data: {path!r} cannot be loaded: {reason}')

    def __len__(self) -> int:
        return len(self._images)

    def _path(self, number: int, skipped: int) -> str:
        round_, place = divmod(number, len(self._images))
        if self._order[0] != (self.seed, round_):
            draw = np.random.default_rng((self.seed, round_))
            order = draw.permutation(len(self._images))
            self._order = (self.seed, round_), order
        # within the round, so that each is tried
        return self._images[self._order[1][(place + skipped) % len(self._images)]]

    def _loaded(self, path: str, number: int) -> dict[str, Any]:
        item: Any = dict(img_path=path, img_id=number)
        seed = seed_of(self.seed, number)
        with seeded(seed):
            for transform in self._pipeline:
                seed_parts(transform, seed)
                item = transform(item)
                if item is None:
                    raise ValueError(f'{type(transform).__name__} turns it down')
        return dict(item)

    def _check(self, item: dict[str, Any]) -> None:
        """Compare with the first image, not with the last: all processes do alike."""
        for path in [] if self._channels else self._images:
            with suppress(Exception):
                self._channels = len(self._loaded(path, 0)['inputs'])
                break
        channels = len(item['inputs'])
        if channels != self._channels:
            raise ValueError(
                f'it has {channels} channels, and others have {self._channels}'
            )
