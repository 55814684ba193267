"""Batches without labels: each item is a function of the seed and its number alone."""

from __future__ import annotations

import itertools
import multiprocessing
import random
from pathlib import Path
from typing import Any, Callable, Tuple

import cv2
import numpy as np
import pytest
import torch

from mmselfdistill.images import Batches, find_images, image_pipeline, loader

STEPS: list[Any] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(40, 40), ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(16, 16)),
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
Item = Tuple[str, int, Any]


def batches(folder: Path, size: int = 3, seed: int = 0, **changes: Any) -> Batches:
    images = find_images(str(folder))
    steps = changes.pop('steps', STEPS)
    return Batches(images, image_pipeline(steps, images[0])[0], size, seed, **changes)


def draw(source: Batches, count: int) -> list[Item]:
    """Return name, number and values of the items of some batches."""
    found: list[Item] = []
    for batch in itertools.islice(source, count):
        assert batch.keys() == {'inputs', 'data_samples'}
        found += [
            (Path(sample.img_path).name, sample.img_id, image.tolist())
            for image, sample in zip(batch['inputs'], batch['data_samples'])
        ]
    return found


def names(items: list[Item]) -> list[str]:
    return [name for name, _, _ in items]


class Draws:
    """Writes a number of each generator into the image."""

    def __call__(self, results: Any) -> Any:
        drawn = random.random(), np.random.rand(), float(torch.rand(1))
        results['img'] = results['img'].astype(np.float32)
        results['img'][0, 0] = drawn
        return results


class OwnGenerator:
    """Draws as albumentations does since 2.0: from a generator that the OS seeds."""

    def __init__(self) -> None:
        self.aug = self
        self._draw = np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)

    def __call__(self, results: Any) -> Any:
        results['img'] = np.full_like(results['img'], self._draw.integers(256))
        return results


class Refuses:
    """Turns images of some names down, or those after the trial fail."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, results: Any) -> Any:
        return None if Path(results['img_path']).name in self.names else results


def streams() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return (
        random.getstate(),
        state[1].tolist(),
        state[2:],
        torch.get_rng_state().tolist(),
    )


def test_items_are_the_same_with_workers_and_from_the_middle(folder: Path) -> None:
    expected = draw(batches(folder), 6)
    assert [number for _, number, _ in expected] == list(range(18))
    assert draw(batches(folder, num_workers=2), 6) == expected
    for workers in (0, 2):
        resumed = batches(folder, num_workers=workers)
        resumed.drawn = 3
        assert draw(resumed, 3) == expected[9:]
        assert resumed.drawn == 6
        # also when batches were drawn before, and loaded ahead
        resumed.drawn = 1
        assert draw(resumed, 2) == expected[3:9]
        resumed.seed = 1
        assert draw(resumed, 1) == draw(batches(folder, seed=1), 4)[9:]
    assert draw(batches(folder, size=9), 2) == expected


def test_closed_it_has_no_processes_and_the_next_batch_goes_on(folder: Path) -> None:
    expected = draw(batches(folder), 4)
    before = multiprocessing.active_children()
    source = batches(folder, num_workers=2)
    for part in (expected[:6], expected[6:]):
        assert draw(source, 2) == part
        assert len(multiprocessing.active_children()) == len(before) + 2
        source.close()
        assert multiprocessing.active_children() == before


def test_every_image_comes_once_a_round_in_another_order(folder: Path) -> None:
    orders = []
    for seed in (0, 1):
        found = names(draw(batches(folder, size=3, seed=seed), 7))
        rounds = [found[:7], found[7:14], found[14:]]
        assert all(sorted(each) == [f'{i}.png' for i in range(7)] for each in rounds)
        orders += rounds
    assert len({tuple(order) for order in orders}) == 6


def test_two_ranks_share_the_items_of_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(batches(folder, size=4), 6)
    monkeypatch.setattr(loader, 'get_world_size', lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(loader, 'get_rank', lambda rank=rank: rank)
        found = draw(batches(folder, size=2), 6)
        expected = [item for item in whole if item[1] // 2 % 2 == rank]
        assert len(found) == 12 and found == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_the_random_streams_of_the_process_stay(folder: Path, workers: int) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = streams()
    source = batches(
        folder, num_workers=workers, steps=[*STEPS[:2], Draws(), STEPS[-1]]
    )
    draw(source, 3)
    assert streams() == before


def test_the_random_streams_stay_where_an_image_fails(folder: Path) -> None:
    before = streams()
    refuses = batches(folder)
    refuses._dataset._pipeline = [*refuses._dataset._pipeline[:-1], Refuses('3.png')]
    with pytest.raises(ValueError, match='cannot be loaded'):
        draw(refuses, 3)
    assert streams() == before


def test_all_generators_are_seeded_by_the_number(folder: Path) -> None:
    steps = [*STEPS[:2], Draws(), STEPS[-1]]
    drawn = []
    for process in range(2):
        random.seed(process)
        np.random.seed(process)
        torch.manual_seed(process)
        items = draw(batches(folder, steps=steps), 7)
        drawn.append([[image[c][0][0] for c in range(3)] for _, _, image in items])
    assert drawn[0] == drawn[1]
    # three draws of each of 21 items, though each image came three times
    assert len({value for each in drawn[0] for value in each}) == 63
    other = draw(batches(folder, seed=1, steps=steps), 7)
    assert not {image[0][0][0] for _, _, image in other} & {x[0] for x in drawn[0]}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_generator_of_a_transform_is_seeded_by_the_number(
    folder: Path, workers: int
) -> None:
    steps = [STEPS[0], OwnGenerator(), STEPS[-1]]
    one = draw(batches(folder, steps=steps), 5)
    source = batches(folder, steps=steps, num_workers=workers)
    source.drawn = 2
    assert draw(source, 3) == one[2 * 3 :]
    source.close()
    assert len({image[0][0][0] for _, _, image in one}) > 10


def test_transforms_draw_again_for_each_item(tmp_path: Path, picture: Any) -> None:
    picture(tmp_path / 'only.png', 40, 40)
    items = draw(batches(tmp_path), 4)
    assert set(names(items)) == {'only.png'}
    assert len({str(image) for _, _, image in items}) == 12


def test_a_broken_image_ends_the_run_with_its_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, apart = batches(folder), batches(folder, num_workers=1)
    (folder / '4.png').write_text('no image')
    message = rf"unlabeled\.data: '{folder}/4\.png' cannot be loaded: .*failed to load"
    with pytest.raises(ValueError, match=message):
        draw(source, 3)
    with pytest.raises(ValueError, match=message):
        draw(apart, 3)
    # PyTorch waits for a worker after an error
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    iterator: Any = apart._iterator
    iterator._shutdown_workers()
    (folder / '4.png').unlink()
    source.drawn = 0
    with pytest.raises(ValueError, match=r"'.*/4\.png' cannot.*: FileNotFoundError"):
        draw(source, 3)


def test_a_transform_that_turns_an_image_down_is_named(folder: Path) -> None:
    steps = [*STEPS[:2], Refuses('3.png'), STEPS[-1]]
    with pytest.raises(ValueError, match=r"/3\.png' cannot.*: Refuses turns it down"):
        draw(batches(folder, steps=steps), 3)


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_images_are_skipped_and_counted(
    folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loader, 'print_log', lambda text, **_: said.append(text))
    good = draw(batches(folder), 7)
    for name in ('2.png', '5.png'):
        (folder / name).write_text('no image')
    source = batches(folder, num_workers=workers, skip_broken=True)
    found = draw(source, 7)
    # of a round, the next one that is not broken
    for round_ in (good[:7], good[7:14], good[14:]):
        order = names(round_)
        for place, item in enumerate(round_):
            (new,) = (each for each in found if each[1] == item[1])
            cycle = itertools.islice(itertools.cycle(order), place, None)
            assert new[0] == next(each for each in cycle if each[0] not in '25')
            assert new == item or item[0] in ('2.png', '5.png')
    follow = [names(good)[i : i + 7] for i in (0, 7, 14)]
    twice = sum((abs(o.index('2.png') - o.index('5.png')) in (1, 6)) for o in follow)
    assert source.skipped == 6 + twice
    assert len(said) == 1 and 'sd_unlabeled_skipped' in said[0]


def test_one_good_image_is_enough(tmp_path: Path, picture: Any) -> None:
    picture(tmp_path / '0.png', 24, 24)
    (tmp_path / '1.png').write_text('no image')
    source = batches(tmp_path, skip_broken=True)
    assert names(draw(source, 10)) == ['0.png'] * 30
    assert source.skipped == 15


def test_no_good_image_at_all(folder: Path) -> None:
    source = batches(folder, skip_broken=True)
    for each in folder.iterdir():
        each.write_text('no image')
    with pytest.raises(ValueError, match=r"unlabeled\.data: '.*png' cannot be loaded"):
        next(source)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('odd', [1, 4, 6])
def test_images_of_other_channels(
    folder: Path, odd: int, workers: int, picture: Callable[..., Path]
) -> None:
    first = dict(type='LoadImageFromFile', color_type='unchanged')
    steps = [first, STEPS[1], STEPS[-1]]
    picture(folder / f'{odd}.png', 24, 32, 4)
    # whichever comes first, the one that differs from the first path is the odd one
    message = rf"/{odd}\.png' .*: it has 4 channels, and others have 3$"
    with pytest.raises(ValueError, match=message):
        draw(batches(folder, size=1, steps=steps), 7)
    for start in (0, 7):
        source = batches(
            folder, size=1, steps=steps, num_workers=workers, skip_broken=True
        )
        source.drawn = start
        items = draw(source, 7)
        assert {len(image) for _, _, image in items} == {3}
        assert source.skipped == 1 and f'{odd}.png' not in names(items)


def test_images_of_any_size_make_a_batch(folder: Path, picture: Any) -> None:
    picture(folder / '6.png', 50, 20)
    whole = draw(batches(folder, size=7, steps=[*STEPS[:2], STEPS[-1]]), 1)
    for name, _, image in whole:
        stored: Any = cv2.imread(str(folder / name))
        assert np.array_equal(np.array(image), stored.transpose(2, 0, 1))
