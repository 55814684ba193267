"""Paths of images: of a folder, or of a dataset."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmselfdistill.images import find_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def coco(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a dataset whose images are mostly not fit for training; return a config."""
    sizes = dict(objects=64, none=64, tiny=8)
    labels = dict(
        images=[
            dict(id=i, file_name=f'{name}.jpg', height=size, width=size)
            for i, (name, size) in enumerate(sizes.items())
        ],
        annotations=[
            dict(id=i, image_id=image, category_id=1, bbox=[1, 1, 4, 4], area=16)
            for i, image in enumerate([0, 2])
        ],
        categories=[dict(id=1, name='person')],
    )
    labels.update(changes)
    (folder / 'labels.json').write_text(
        json.dumps({key: value for key, value in labels.items() if value is not None})
    )
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='labels.json',
        data_prefix=dict(img='images/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[dict(type='NoneSuch')],
    )


def test_a_folder_is_searched_with_all_below_and_sorted(tmp_path: Path) -> None:
    images = ['b.JPG', 'a/z.png', 'a.jpeg', 'a/b/c.TIFF', 'z.webp', '10.Bmp', '9.ppm']
    touch(tmp_path, *images, 'a.txt', 'a/jpg', 'a.png.json', '.hidden.png', 'x.jpg~')
    (tmp_path / 'folder.png').mkdir()
    touch(tmp_path / '.elsewhere', 'z.png', 'b/c.TIFF')
    (tmp_path / 'link').symlink_to(tmp_path / '.elsewhere', target_is_directory=True)
    # what is here is found once
    (tmp_path / '0').symlink_to(tmp_path / 'a/b', target_is_directory=True)
    images += ['link/z.png', 'link/b/c.TIFF']
    found = find_images(str(tmp_path))
    assert found == [str(tmp_path / name) for name in sorted(images)]
    assert find_images(f'{tmp_path}/')[0] == str(tmp_path / '10.Bmp')


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, 'a/1.png', 'a/b/2.png', '.cache/3.png')
    for link, folder in (('a/a', 'a'), ('a/b/up', '.'), ('c', 'a/b')):
        (tmp_path / link).symlink_to(tmp_path / folder, target_is_directory=True)
    expected = ['a/1.png', 'a/b/2.png']
    assert find_images(str(tmp_path)) == [str(tmp_path / name) for name in expected]


def test_links_of_two_folders_to_each_other_end(tmp_path: Path) -> None:
    touch(tmp_path, 'root/1.png', 'one/2.png', 'other/3.png')
    links = [('root/a', 'one'), ('root/b', 'other'), ('one/back', 'root')]
    for link, folder in [*links, ('other/back', 'root')]:
        (tmp_path / link).symlink_to(tmp_path / folder, target_is_directory=True)
    root = tmp_path / 'root'
    expected = [root / '1.png', root / 'a' / '2.png', root / 'b' / '3.png']
    assert find_images(str(root)) == [*map(str, expected)]


def test_many_folders_that_link_to_each_other_are_searched_once(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    for name in names:
        touch(tmp_path, f'{name}/image-{name}.png')
        for other in names:
            (tmp_path / name / f'to-{other}').symlink_to(tmp_path / other)
    found = find_images(str(tmp_path / '0'))
    assert sorted(Path(path).name for path in found) == sorted(
        f'image-{name}.png' for name in names
    )


def test_a_folder_that_cannot_be_read_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, 'a/1.png', 'lost+found/2.png')
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith('lost+found'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    # this user may read all
    monkeypatch.setattr(os, 'scandir', refusing)
    said: list[str] = []
    module = 'mmselfdistill.images.find'
    monkeypatch.setattr(f'{module}.print_log', lambda text, **_: said.append(text))
    assert find_images(str(tmp_path)) == [str(tmp_path / 'a/1.png')]
    (line,) = said
    folder = str(tmp_path / 'lost+found')
    assert line == (
        f'unlabeled.data: the folder {folder!r} cannot be read, and is left out: '
        'Permission denied'
    )


def test_a_folder_without_images(tmp_path: Path) -> None:
    touch(tmp_path, 'a.txt')
    with pytest.raises(ValueError, match=r"no image is in '.*': .*\.jpg, \.jpeg, "):
        find_images(str(tmp_path))
    with pytest.raises(ValueError, match=f"there is no folder '{tmp_path / 'a'}'"):
        find_images(str(tmp_path / 'a'))
    with pytest.raises(ValueError, match=r"a\.txt' is a file: give its folder, or "):
        find_images(str(tmp_path / 'a.txt'))


@pytest.mark.parametrize('data', [None, 3, ['folder'], {}, dict(ann_file='a.json')])
def test_a_setting_of_another_kind(data: Any) -> None:
    with pytest.raises(ValueError, match=r'^unlabeled\.data: expected the path of a f'):
        find_images(data)


def test_all_images_of_a_detection_dataset(tmp_path: Path) -> None:
    cfg = coco(tmp_path)
    before = copy.deepcopy(cfg)
    expected = [
        str(tmp_path / f'images/{name}.jpg') for name in ('objects', 'none', 'tiny')
    ]
    # with labels, only the first is trained on
    assert len(DATASETS.build(dict(cfg, pipeline=[]))) == 1
    assert find_images(cfg) == expected
    assert find_images(ConfigDict(cfg)) == expected
    assert cfg == before
    assert find_images(dict(cfg, type='mmdet.CocoDataset', indices=2)) == expected[:2]


def test_the_datasets_inside_of_a_wrapper(tmp_path: Path) -> None:
    inner = coco(tmp_path)
    many = dict(type='RepeatDataset', dataset=dict(inner, indices=2), times=3)
    joined = dict(type='ConcatDataset', datasets=[many, inner])
    assert find_images(joined) == find_images(inner)[:2] + find_images(inner)
    with pytest.raises(
        ValueError, match='a list of datasets in ConcatDataset, but got N'
    ):
        find_images(dict(type='ConcatDataset', datasets=None))
    with pytest.raises(ValueError, match=r'unlabeled\.data: ConcatDataset has no data'):
        find_images(dict(type='ConcatDataset', datasets=[]))


def test_a_place_that_cannot_be_listed() -> None:
    message = r"unlabeled\.data: the folder 'http://a/b' cannot be listed: Attribute"
    with pytest.raises(ValueError, match=message):
        find_images('http://a/b')


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, 'a.jpg')
    monkeypatch.setenv('HOME', str(tmp_path.parent))
    assert find_images(f'~/{tmp_path.name}') == [str(tmp_path / 'a.jpg')]


@DATASETS.register_module()
class Fold(BaseDataset):
    """Keeps the first image of a dataset."""

    def __init__(self, dataset: Any, **rest: Any) -> None:
        self.given = DATASETS.build(dict(dataset, pipeline=[], test_mode=True))
        super().__init__(**rest)

    def load_data_list(self) -> list[Any]:
        return [self.given.get_data_info(0)]


def test_a_wrapper_that_keeps_a_part_is_asked_itself(tmp_path: Path) -> None:
    inner = coco(tmp_path)
    assert find_images(dict(type='Fold', dataset=inner)) == find_images(inner)[:1]


def test_labels_of_coco_that_list_images_alone(tmp_path: Path) -> None:
    # image_info_unlabeled2017.json is such
    assert len(find_images(coco(tmp_path, annotations=None))) == 3


def test_a_segmentation_dataset_needs_no_maps(tmp_path: Path) -> None:
    touch(tmp_path, 'images/a/1.png', 'images/2.png', 'images/3.jpg')
    cfg = dict(
        type='mmseg.BaseSegDataset',
        metainfo=dict(classes=['person']),
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
    )
    found = [str(tmp_path / 'images' / name) for name in ('2.png', 'a/1.png')]
    assert find_images(cfg) == found
    # without it, MMSegmentation refuses the test mode
    del cfg['metainfo']
    assert find_images(cfg) == found


def test_the_frames_of_videos(tmp_path: Path) -> None:
    touch(tmp_path, 'a/1.png', 'a/2.png', 'b/1.png')
    frames = [('a', 1), ('a', 2), ('b', 1)]
    labels = dict(
        videos=[dict(id=1, name='a'), dict(id=2, name='b')],
        images=[
            dict(
                id=number,
                video_id='ab'.index(video) + 1,
                frame_id=frame - 1,
                file_name=f'{video}/{frame}.png',
                height=8,
                width=8,
            )
            for number, (video, frame) in enumerate(frames)
        ],
        annotations=[],
        categories=[dict(id=1, name='person')],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(labels))
    cfg = dict(
        type='mmdet.BaseVideoDataset',
        ann_file=str(tmp_path / 'labels.json'),
        data_prefix=dict(img_path=str(tmp_path)),
        metainfo=dict(classes=['person']),
    )
    expected = [str(tmp_path / f'{video}/{frame}.png') for video, frame in frames]
    assert find_images(cfg) == expected


def test_what_else_a_dataset_calls_images_is_no_frame() -> None:
    class Paths(BaseDataset):  # type: ignore[misc]
        def load_data_list(self) -> Any:
            return [dict(img_path='a.png', images=['a.png', 'depth.png'])]

    assert find_images(dict(type=Paths)) == ['a.png']


def test_the_home_folder_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = coco(tmp_path)
    cfg['data_prefix'] = dict(img='~/images')
    cfg.update(data_root='', ann_file=f'{tmp_path}/labels.json')
    assert find_images(cfg)[0] == str(tmp_path / 'images/objects.jpg')


def test_a_dataset_that_gives_no_paths(tmp_path: Path) -> None:
    start = r"^unlabeled\.data: the dataset '{}' gives no paths of images: {}"
    cfg = coco(tmp_path)
    bad = [
        (dict(cfg, type='CocoDatset'), 'KeyError: .*CocoDatset'),
        (dict(cfg, ann_file='other.json'), 'FileNotFoundError: .*other.json'),
        (dict(cfg, annfile='labels.json'), 'TypeError: .*annfile'),
        (coco(tmp_path, images=[]), 'ValueError: '),
    ]
    for data, reason in bad:
        with pytest.raises(ValueError, match=start.format(data['type'], reason)):
            find_images(data)
