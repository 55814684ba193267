"""Which images are shown in a view, by which draws, and what its settings may be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmselfdistill import views_of as module
from mmselfdistill.seeds import generator_of, seed_of
from mmselfdistill.views import View, build_view
from mmselfdistill.views_of import views_of

CPU = torch.device('cpu')
ALL: dict[str, Any] = dict(brightness=0.5, contrast=0.5, color=0.5, blur=1.0)
ALL.update(noise=0.3, erase=0.3, mask=0.3, mask_size=3, cutmix=0.5)


def images(*shape: int) -> Tensor:
    return 40 * torch.randn(shape, generator=generator_of(CPU, 9)) + 100


def show(x: Any, samples: Any = None, *seed: int, **steps: Any) -> Any:
    return views_of(View(**(steps or ALL)), x, samples, seed)


def sample(*shape: int) -> Any:
    return SimpleNamespace(img_shape=shape, batch_input_shape=(12, 10))


def padded() -> tuple[Tensor, list[Any]]:
    """Return two images with black next to them, and below."""
    x = images(2, 3, 12, 10)
    x[0, :, :, 6:] = 0
    x[1, :, 7:] = 0
    return x, [sample(12, 6), sample(7, 10, 3)]


def test_padding_stays_as_it_was() -> None:
    x, samples = padded()
    for steps in (dict(noise=1.0), dict(ALL, cutmix=1.0)):
        shown, ((seen, clean),) = show(x, samples, 4, **steps)
        assert shown[id(x)] is seen
        for image in (seen, clean):
            assert torch.equal(image[0, :, :, 6:], x[0, :, :, 6:])
            assert torch.equal(image[1, :, 7:], x[1, :, 7:])
    inside = torch.cat(
        [(seen != x)[0, :, :, :6].flatten(), (seen != x)[1, :, :7].flatten()]
    )
    assert float(inside.float().mean()) > 0.9
    # what has no shape is perturbed as a whole
    others: list[Any] = [None, [], samples[:1], [samples[0], SimpleNamespace()], {}, x]
    # nor where nobody has padded: a transform may have left the shape of the file
    others.append([SimpleNamespace(img_shape=shape) for shape in ((24, 12), (14, 20))])
    for other in others:
        (seen,) = show(x, other, 4, noise=1.0)[0].values()
        assert bool((seen != x).all())


def test_padding_is_known_where_the_largest_images_fill_the_batch() -> None:
    # MMPretrain's preprocessor pads, and notes no shape
    x, samples = padded()
    bare = [SimpleNamespace(img_shape=each.img_shape) for each in samples]
    ((one, _),), ((other, _),) = (
        show(x, each, 4, **ALL)[1] for each in (samples, bare)
    )
    assert torch.equal(one, other)


def test_padding_is_not_blurred_into_an_image() -> None:
    x = images(1, 3, 12, 10)
    whole = x[:, :, :7, :6].clone()
    x[:, :, 7:] = x[:, :, :, 6:] = 1e3
    (_, ((seen, _),)) = show(x, [sample(7, 6)], 4, blur=2.0)
    (_, ((alone, _),)) = show(whole, None, 4, blur=2.0)
    torch.testing.assert_close(seen[:, :, :7, :6], alone)
    assert float((alone - whole).abs().max()) > 0.1


def test_padding_is_no_part_of_mean_and_deviation() -> None:
    x, samples = padded()
    _, ((brighter, _),) = show(x, samples, 4, brightness=0.5)
    _, ((hidden, _),) = show(x, samples, 4, mask=1.0)
    for i, each in enumerate(samples):
        height, width = each.img_shape[:2]
        image, shifted, behind = (
            y[i, :, :height, :width] for y in (x, brighter, hidden)
        )
        std = image.double().var((1, 2), unbiased=False).sqrt()
        unit = (shifted - image).double().flatten(1) / std[:, None]
        assert float(unit.max() - unit.min()) < 1e-4
        assert 0 < float(unit.abs().max()) < 0.5
        mean = image.mean((1, 2), keepdim=True).expand_as(behind)
        torch.testing.assert_close(behind, mean)


def test_a_share_is_one_of_the_image_without_its_padding() -> None:
    x = torch.zeros(400, 1, 64, 48)
    x[:, :, :32, :24] = images(400, 1, 32, 24)
    samples = [sample(32, 24)] * 400
    _, ((seen, _),) = show(x, samples, 4, erase=0.3)
    hidden = (seen != x)[:, 0]
    assert not hidden[:, 32:].any() and not hidden[:, :, 24:].any()
    shares = hidden[:, :32, :24].double().mean((1, 2))
    # uniform in [0, 0.3], up to a line of pixels
    assert 0.27 < float(shares.max()) < 0.33
    assert float(shares.mean()) == pytest.approx(0.15, abs=0.015)
    assert float((shares == 0).double().mean()) < 0.03


def test_no_padding_is_pasted_into_an_image() -> None:
    # every other image is a strip above its padding
    x = images(200, 1, 32, 32)
    x[1::2, :, 8:] = 0
    samples = [sample(32, 32), sample(8, 32)] * 100
    _, ((_, clean),) = show(x, samples, 4, cutmix=1.0)
    assert not (clean[::2] == 0).any()
    # the strips are pasted, and so are whole images into them
    for mixed, own in ((clean[::2], x[::2]), (clean[1::2], x[1::2])):
        changed = (mixed != own)[:, 0].any(2).any(1)
        assert float(changed.double().mean()) > 0.4
    assert not (clean != x)[::2, :, 8:].any()


def test_what_is_pasted_ends_where_the_image_that_it_is_of_does() -> None:
    # of two images the one before is the one after, of three it is not
    x = images(300, 1, 32, 32)
    x[1::3, :, 8:] = 0
    samples = [sample(32, 32), sample(8, 32), sample(32, 32)] * 100
    _, ((_, clean),) = show(x, samples, 4, cutmix=1.0)
    assert not (clean[::3] == 0).any() and not (clean[2::3] == 0).any()
    # into those behind a strip, something is pasted above its end alone
    changed = (clean != x)[:, 0].any(2)
    assert not changed[2::3, 8:].any() and changed[2::3, :8].any()
    assert changed[::3, 8:].any()


def test_nothing_that_a_transform_made_up_is_pasted() -> None:
    # the right half of every other image is filled
    x = images(200, 1, 16, 16)
    x[1::2, :, :, 8:] = 0
    shown = torch.ones(16, 16, dtype=torch.bool)
    shown[:, 8:] = False
    metas = [{}, dict(shown=shown)] * 100
    # a pipeline may make the map smaller
    small = [{}, dict(shown=shown[::4, ::4], img_shape=(16, 16))] * 100
    for known in (metas, small):
        _, ((_, clean),) = views_of(View(cutmix=1.0), x, None, [4], known)
        changed = (clean != x)[:, 0].any(1)
        assert not changed[::2, 8:].any() and changed[::2, :8].any(0).all()
        assert changed[1::2].any(0).all()


def test_what_is_shown_is_contiguous() -> None:
    last = images(3, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for steps in (dict(brightness=0.5), ALL):
        shown, ((seen, clean),) = show(last, None, 1, **steps)
        assert shown[id(last)].is_contiguous() and clean.is_contiguous()
        expected = show(last.contiguous(), None, 1, **steps)[1][0]
        torch.testing.assert_close((seen, clean), expected)


def test_frames_of_a_video_are_images() -> None:
    x = images(2, 3, 3, 8, 8)
    _, ((seen, clean),) = show(x, [sample(8, 8)] * 2, 1)
    assert seen.shape == clean.shape == x.shape
    expected = View(**ALL)(x.view(6, 3, 8, 8), generator_of(CPU, 1, 0, 0))
    assert torch.equal(seen.view(6, 3, 8, 8), expected[0])
    assert torch.equal(clean.view(6, 3, 8, 8), expected[1])
    # each frame has its own padding
    frames = [[sample(8, 3 + 3 * i + j) for j in range(3)] for i in range(2)]
    videos = [SimpleNamespace(video_data_samples=each) for each in frames]
    _, ((seen, _),) = show(x, videos, 1, noise=1.0)
    changed = (seen != x).all(2).all(2).flatten(0, 1)
    assert changed.sum(1).tolist() == list(range(3, 9))


def test_images_are_found_in_containers_and_others_left_alone() -> None:
    one, two = images(2, 3, 8, 8), images(2, 3, 8, 8)
    rest = [torch.ones(2, 3, 8, 8, dtype=torch.uint8), images(3, 8, 8), images(2, 5)]
    shown, pairs = show(dict(a=[one, *rest], b=(two,)), None, 1)
    assert shown.keys() == {id(one), id(two)}
    assert [id(shown[id(x)]) for x in (one, two)] == [id(seen) for seen, _ in pairs]
    # equal images, each with its own draw
    assert torch.equal(one, two)
    assert not torch.equal(shown[id(one)], shown[id(two)])
    assert views_of(None, [one], None, (1,)) == ({}, [])
    for nothing in (rest, [], None):
        with pytest.raises(ValueError, match=r'^view: .* no image of floating point'):
            show(nothing, None, 1)
        assert views_of(None, nothing, None, (1,)) == ({}, [])


def test_branches_of_semi_supervised_detectors() -> None:
    keys = ('sup', 'unsup_teacher', 'unsup_student')
    inputs = {key: padded()[0] for key in keys}
    samples = {key: padded()[1] for key in keys}
    shown, ((seen, _),) = show(inputs, samples, 1, noise=1.0)
    assert shown.keys() == {id(inputs['sup'])}
    assert torch.equal(seen[0, :, :, 6:], inputs['sup'][0, :, :, 6:])


def test_draws_depend_on_seed_iteration_and_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = images(2, 3, 8, 8)
    first, again = (show(x, None, 3, 10)[0][id(x)] for _ in range(2))
    assert torch.equal(first, again)
    others = [show(x, None, *seed)[0][id(x)] for seed in [(4, 10), (3, 11), (3, 10, 1)]]
    monkeypatch.setattr(module, 'get_rank', lambda: 1)
    others.append(show(x, None, 3, 10)[0][id(x)])
    for i, other in enumerate(others):
        assert not any(torch.equal(other, each) for each in [first, *others[:i]])


def test_seeds_are_told_apart_and_the_same_in_each_process() -> None:
    cases = [(0,), (0, 0), (1,), (1, 0), (1, 0, 0, 0, 0), (0, 1), (2**31, 5)]
    seeds = [seed_of(*case) for case in cases]
    assert len(set(seeds)) == len(cases)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert generator_of(CPU, 3, 4).initial_seed() == seed_of(3, 4)
    assert seed_of(3, 4) == 4142466838686032688


BAD = [
    (0.5, r': expected a dict such as .*, or None, but got 0\.5'),
    (['blur'], r": expected a dict such as .* but got \['blur'\]"),
    (dict(brightnes=1), r": unknown 'brightnes'; did you mean 'brightness'\? Valid:"),
    (dict(colour=1), r": unknown 'colour'; did you mean 'color'\? Valid: 'blur', "),
    ({3: 1}, ': unknown 3; valid: '),
    (dict(blur=True), r'\.blur: expected a number >= 0, but got True'),
    (dict(noise=-0.1), r'\.noise: expected a number >= 0, but got -0\.1'),
    (dict(brightness=math.inf), r'\.brightness: .* >= 0, but got inf'),
    (dict(contrast='1'), r"\.contrast: expected a number in \[0, 1\], but got '1'"),
    (dict(color=1.1), r'\.color: expected a number in \[0, 1\], but got 1\.1'),
    (dict(erase=2), r'\.erase: expected a number in \[0, 1\], but got 2'),
    (dict(mask=math.nan), r'\.mask: expected a number in \[0, 1\], but got nan'),
    (dict(mask_size=0), r'\.mask_size: expected an integer >= 1, but got 0'),
    (dict(mask_size=8.0), r'\.mask_size: expected an integer >= 1, but got 8\.0'),
    (dict(mask_size=True), r'\.mask_size: expected an integer >= 1, but got True'),
    (dict(cutmix=0.1), r'\.cutmix: labels are not mixed: .*unlabeled=dict\(view='),
]


@pytest.mark.parametrize(('cfg', 'message'), BAD)
def test_bad_settings_are_named(cfg: Any, message: str) -> None:
    with pytest.raises(ValueError, match='^self_distill.view' + message):
        build_view(cfg, 'self_distill.view', labels=True)


def test_a_view_is_what_was_written() -> None:
    built = build_view(ALL, 'view', labels=False)
    assert built == View(**ALL)
    assert build_view(dict(cutmix=0.0, blur=1), 'view', True) == View(blur=1.0)
