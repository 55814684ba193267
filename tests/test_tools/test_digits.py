"""The digits set is what it says, and the stock datasets read it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits

from tools.dataset_converters import digits as digits_tool
from tools.dataset_converters.digits import all_or_nothing, write_digits
from tools.dataset_converters.digits_imagenet import write_images

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'digits.py'
COUNTS = dict(train=12, val=5)
SIZE = 64


def run_tool(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    counts = [v for name, n in COUNTS.items() for v in (f'--{name}', str(n))]
    command = [sys.executable, '-W', 'ignore', str(TOOL), str(root), *counts]
    command += ['--size', str(SIZE), *more]
    return subprocess.run(command, capture_output=True, text=True)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob('*')) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'digits'
    done = run_tool(root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def annotations(digits: Path) -> dict[str, Any]:
    text = (digits / 'annotations' / 'instances_train2017.json').read_text()
    return dict(json.loads(text))


def test_both_layouts_are_complete(digits: Path) -> None:
    names = dict(train='training', val='validation')
    for split, count in COUNTS.items():
        coco = sorted((digits / f'{split}2017').glob('*.jpg'))
        ade = sorted((digits / 'images' / names[split]).glob('*.jpg'))
        labels = sorted((digits / 'annotations' / names[split]).glob('*.png'))
        assert len(coco) == len(ade) == len(labels) == count
        assert [p.read_bytes() for p in coco] == [p.read_bytes() for p in ade]
        assert [p.stem for p in ade] == [p.stem for p in labels]


def test_boxes_and_areas_are_those_of_the_visible_masks(
    annotations: dict[str, Any],
) -> None:
    assert len(annotations['annotations']) > COUNTS['train']
    seen: dict[int, Any] = {}
    for annotation in annotations['annotations']:
        mask = coco_mask.decode(annotation['segmentation']).astype(bool)
        rows, columns = mask.nonzero()
        x, y, width, height = annotation['bbox']
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation['area'] == mask.sum() > 0
        taken = seen.setdefault(annotation['image_id'], np.zeros_like(mask))
        assert not (taken & mask).any(), 'a pixel belongs to one digit at most'
        taken |= mask


def test_label_maps_agree_with_the_masks(
    digits: Path, annotations: dict[str, Any]
) -> None:
    for image in annotations['images']:
        name = f'ADE_train_{image["id"]:08d}.png'
        labels = cv2.imread(str(digits / 'annotations' / 'training' / name), -1)
        from_masks = np.zeros_like(labels)
        for a in annotations['annotations']:
            if a['image_id'] == image['id']:
                mask = coco_mask.decode(a['segmentation']).astype(bool)
                from_masks[mask] = a['category_id'] + 1
        digit = labels >= 2
        assert (labels[digit] == from_masks[digit]).all()
        # what is soft about a later digit may lie over an earlier one
        assert ((labels == 0) | (labels == from_masks))[~digit & (from_masks > 0)].all()
        assert (labels[from_masks == 0] <= 1).all() and (labels == 0).any()


def test_same_seed_same_bytes_and_a_prefix_of_more(
    digits: Path, tmp_path: Path
) -> None:
    again, more, other = tmp_path / 'again', tmp_path / 'more', tmp_path / 'other'
    run_tool(again)
    assert contents(again) == contents(digits)
    run_tool(more, '--train', '15')
    name = 'train2017/000000000012.jpg'
    assert contents(more)[name] == contents(digits)[name]
    run_tool(other, '--seed', '1')
    assert contents(other)[name] != contents(digits)[name]


def test_repeated_calls_draw_only_what_changed(tmp_path: Path) -> None:
    root = tmp_path / 'digits'
    run_tool(root)
    before = contents(root)
    stamp = (root / 'digits.json').stat().st_mtime_ns
    assert 'already in' in run_tool(root).stdout
    assert (root / 'digits.json').stat().st_mtime_ns == stamp
    assert 'written to' in run_tool(root, '--val', '2').stdout
    assert len(list((root / 'val2017').glob('*.jpg'))) == 2
    run_tool(root)
    assert contents(root) == before


def test_a_call_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    root = tmp_path / 'digits'
    root.mkdir()
    (root / 'before').touch()
    with pytest.raises(RuntimeError, match='no space'), all_or_nothing(root) as partial:
        partial.mkdir()
        (partial / 'half').touch()
        raise RuntimeError('no space')
    assert contents(tmp_path) == {'digits/before': b''}


def test_a_deletion_that_is_interrupted_leaves_the_new_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / 'digits'
    write_digits(root, train=1, val=1, size=SIZE, seed=0)

    def half(folder: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digits_tool.shutil, 'rmtree', half)
        write_digits(root, train=2, val=1, size=SIZE, seed=0)
    assert not write_digits(root, train=2, val=1, size=SIZE, seed=0)


def test_a_set_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / 'digits'
    root.mkdir()
    (root / 'before').touch()
    # there is nothing to take its place
    with pytest.raises(FileNotFoundError), all_or_nothing(root):
        pass
    assert contents(tmp_path) == {'digits/before': b''}


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / 'disk').mkdir()
    root = tmp_path / 'digits'
    root.symlink_to(tmp_path / 'disk')
    write_digits(root, train=1, val=1, size=SIZE, seed=0)
    assert root.is_symlink() and (tmp_path / 'disk' / 'digits.json').is_file()


def test_of_two_calls_at_once_one_is_kept(digits: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run_tool, [tmp_path / 'digits'] * 2))
    assert [each.returncode for each in done] == [0, 0], done
    written = {f'digits/{name}': each for name, each in contents(digits).items()}
    assert contents(tmp_path) == written


def test_a_set_that_another_call_wrote_is_not_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / 'digits'
    write_split = digits_tool.write_split

    def meanwhile(*given: Any) -> None:
        monkeypatch.setattr(digits_tool, 'write_split', write_split)
        write_digits(root, train=2, val=1, size=SIZE, seed=0)
        write_split(*given)

    monkeypatch.setattr(digits_tool, 'write_split', meanwhile)
    with pytest.raises(SystemExit, match=r"another call wrote .*'train': 2"):
        write_digits(root, train=1, val=1, size=SIZE, seed=0)
    assert len(list((root / 'train2017').glob('*.jpg'))) == 2
    assert list(tmp_path.iterdir()) == [root]


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'precious.txt').write_text('mine')
    done = run_tool(tmp_path)
    assert done.returncode == 1 and 'not written by this tool' in done.stderr
    assert contents(tmp_path) == {'precious.txt': b'mine'}


def test_images_of_someone_else_are_left_alone(tmp_path: Path) -> None:
    image = tmp_path / 'train' / 'n01440764' / '1.JPEG'
    image.parent.mkdir(parents=True)
    image.touch()
    with pytest.raises(SystemExit, match='not written by this tool'):
        write_images(tmp_path, train=100, val=100, size=SIZE, seed=0)
    assert contents(tmp_path) == {'train/n01440764/1.JPEG': b''}


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--unlabeled', '-5'], '--unlabeled and --seed must be at least 0'),
        (['--seed', '-1'], '--unlabeled and --seed must be at least 0'),
        ([], 'is a file: name a folder'),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / 'root'
    root.write_text('mine')
    monkeypatch.setattr(sys, 'argv', ['digits.py', str(root), *flags])
    with pytest.raises(SystemExit, match=message):
        digits_tool.main()
    assert root.read_text() == 'mine'


def test_every_class_has_an_image(tmp_path: Path) -> None:
    root = tmp_path / 'digits_imagenet'
    with pytest.raises(
        SystemExit, match=r'--train: 10 images have none of class [0-9]'
    ):
        write_images(root, train=10, val=10, size=SIZE, seed=0)
    assert list(tmp_path.iterdir()) == []
    for seed in (0, 1):  # the second takes the place of the first
        write_images(root, train=100, val=100, size=SIZE, seed=seed)
        for split in ('train', 'val'):
            assert len(list((root / split).iterdir())) == 10
            assert len(list((root / split).glob('*/*.png'))) == 100


def test_training_and_validation_digits_are_disjoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import digits

    train, train_labels = digits.digits_of('train')
    val, val_labels = digits.digits_of('val')
    everything = load_digits()
    assert (np.concatenate([train, val]) * 16 == everything.images).all()
    assert (np.concatenate([train_labels, val_labels]) == everything.target).all()
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in val}
    assert set(train_labels) == set(val_labels) == set(range(10))


def build_dataset(
    base: str, loader: str, root: Path, changes: dict[str, Any] | None = None
) -> Any:
    """Build a dataset of our configs, which is the stock one with other paths."""
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / base)[loader]
    cfg.dataset.update(data_root=str(root), **(changes or {}))
    if 'segmentation' in base:
        pytest.importorskip('mmseg')
        init_default_scope('mmseg')
        from mmseg.registry import DATASETS
    else:
        pytest.importorskip('mmdet')
        init_default_scope('mmdet')
        from mmdet.registry import DATASETS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
    return DATASETS.build(cfg.dataset)


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_stock_coco_dataset_reads_it(digits: Path, loader: str) -> None:
    dataset = build_dataset('digits_detection.py', loader, digits)
    split = loader.partition('_')[0]
    text = (digits / 'annotations' / f'instances_{split}2017.json').read_text()
    annotations = json.loads(text)['annotations']
    assert len(dataset) == COUNTS[split]
    read = [dataset.get_data_info(i)['instances'] for i in range(len(dataset))]
    assert sum(map(len, read)) == len(annotations)
    labels = sorted(i['bbox_label'] for instances in read for i in instances)
    assert labels == sorted(a['category_id'] - 1 for a in annotations)
    assert dataset[0]['inputs'].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize('stock', ['BaseSegDataset', 'ADE20KDataset'])
def test_stock_segmentation_datasets_read_it(digits: Path, stock: str) -> None:
    changes: dict[str, Any] = dict(type=stock)
    if stock == 'ADE20KDataset':  # it accepts only its own classes
        changes['metainfo'] = None
    dataset = build_dataset('digits_segmentation.py', 'val_dataloader', digits, changes)
    assert len(dataset) == COUNTS['val']
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        read = sample.gt_sem_seg.data[0].numpy()
        stored = cv2.imread(sample.seg_map_path, -1)
        # reduce_zero_label: 0 becomes 255, which is ignored, all else one less
        assert (read == (stored.astype(int) - 1) % 256).all()
        assert set(np.unique(read)) <= {*range(11), 255}
