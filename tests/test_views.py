"""What the student sees: each step against its formula, and all that it leaves be."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.utils import digit_version
from torch import Tensor

from mmselfdistill.seeds import generator_of
from mmselfdistill.views import View, blurred, build_view

CPU = torch.device('cpu')
ALL: dict[str, Any] = dict(brightness=0.5, contrast=0.5, color=0.5, blur=1.0)
ALL.update(noise=0.3, erase=0.3, mask=0.3, mask_size=3, cutmix=0.5)


def images(*shape: int) -> Tensor:
    return 40 * torch.randn(shape, generator=generator_of(CPU, 9)) + 100


def view(x: Tensor, seed: int = 0, **steps: Any) -> tuple[Tensor, Tensor]:
    return View(**steps)(x, generator_of(x.device, seed))


def only(x: Tensor, **steps: Any) -> Tensor:
    """Return what the student sees of images that its teacher sees as they are."""
    seen, clean = view(x, **steps)
    assert clean is x
    return seen


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.double().sum((2, 3), keepdim=True) / x[0, 0].numel()
    square = (x.double() - mean).square().sum((2, 3), keepdim=True)
    return mean, (square / x[0, 0].numel()).sqrt()


def one_each(x: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Return the one value that all of an image has."""
    flat = x.flatten(1)
    spread = flat.amax(1) - flat.amin(1)
    assert float(spread.max()) < tolerance
    return flat.mean(1)


def assert_uniform(
    values: Tensor, low: float, high: float, slack: float = 1e-3
) -> None:
    """Check the ends and the first two moments of some hundred draws."""
    unit = (values.double() - low) / (high - low)
    assert -slack < float(unit.min()) < 0.03 and 0.97 < float(unit.max()) < 1 + slack
    assert float(unit.mean()) == pytest.approx(1 / 2, abs=0.05)
    assert float(unit.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.03)


def boxes(hidden: Tensor) -> Tensor:
    """Return height and width of the rectangle (N, H, W) that each image has hidden."""
    rows, columns = hidden.any(2), hidden.any(1)
    assert torch.equal(hidden, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        # one piece: it begins once
        assert int(((~lines[:, :-1]) & lines[:, 1:]).sum(1).add(lines[:, 0]).max()) == 1
    return torch.stack([rows.sum(1), columns.sum(1)], 1)


def test_brightness_adds_standard_deviations_of_the_image() -> None:
    x = images(400, 3, 6, 5)
    added = (only(x, brightness=0.5) - x).double() / moments(x)[1]
    assert_uniform(one_each(added), -0.5, 0.5)


def test_contrast_keeps_the_mean_and_scales_the_rest() -> None:
    x = images(400, 3, 6, 5)
    seen = only(x, contrast=0.4)
    (mean, std), (new_mean, new_std) = moments(x), moments(seen)
    torch.testing.assert_close(new_mean, mean, atol=1e-3, rtol=0)
    factor = one_each(new_std / std)
    assert_uniform(factor, 0.6, 1.4)
    expected = mean + factor[:, None, None, None] * (x - mean)
    torch.testing.assert_close(seen.double(), expected, atol=1e-2, rtol=0)


def test_color_keeps_the_grey_image_and_scales_what_differs_from_it() -> None:
    x = images(400, 3, 6, 5)
    seen = only(x, color=1.0)
    grey = (x[:, 0] + x[:, 1] + x[:, 2])[:, None] / 3
    torch.testing.assert_close(seen.mean(1, True), grey, atol=1e-3, rtol=0)
    factor = ((seen - grey) * (x - grey)).sum((1, 2, 3)) / (x - grey).square().sum(
        (1, 2, 3)
    )
    assert_uniform(factor, 0, 2)
    expected = grey + factor[:, None, None, None] * (x - grey)
    torch.testing.assert_close(seen, expected, atol=1e-2, rtol=0)
    assert torch.allclose(only(x[:, :1], color=1.0), x[:, :1])


def test_a_step_goes_on_from_what_the_one_before_has_made() -> None:
    x = images(20, 3, 6, 5) * torch.tensor([1.0, 2.0, 0.1]).view(3, 1, 1)
    # the first draw is that of the brightness, with or without another step
    brighter = only(x, brightness=0.5)
    contrast = only(x, brightness=0.5, contrast=0.4)
    color = only(x, brightness=0.5, color=1.0)
    torch.testing.assert_close(color.mean(1), brighter.mean(1), atol=1e-3, rtol=0)
    shift, mean = moments(brighter)[0] - moments(x)[0], moments(x)[0]
    factor = moments(contrast)[1] / moments(x)[1]
    expected = mean + factor * (x - mean) + factor * shift
    torch.testing.assert_close(contrast.double(), expected, atol=1e-2, rtol=0)


def test_noise_is_normal_of_each_pixel_and_channel() -> None:
    x = images(400, 3, 16, 16) * torch.tensor([1.0, 2.0, 0.1]).view(3, 1, 1)
    noise = ((only(x, noise=0.5) - x).double() / moments(x)[1]).flatten(2)
    strength = noise.flatten(1).square().mean(1).sqrt()
    assert_uniform(strength, 0, 0.5, 0.1)
    unit = noise / strength[:, None, None]
    assert float(unit.mean()) == pytest.approx(0, abs=0.01)
    assert float((unit**4).mean()) == pytest.approx(3, abs=0.05)
    channels = torch.corrcoef(unit.transpose(0, 1).flatten(1))
    torch.testing.assert_close(channels, torch.eye(3).double(), atol=0.02, rtol=0)


def test_blur_against_a_sum_over_all_neighbours() -> None:
    x = images(3, 2, 11, 9)
    widths = (0.0, 0.7, 1.3)
    found = blurred(x, torch.tensor(widths).view(3, 1, 1, 1), 1.3)
    for each, width, image in zip(found.double(), widths, x.double()):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode='reflect')
        total, weights = np.zeros((2, 11, 9)), 0.0
        for dy, dx in np.ndindex(9, 9):
            distance = (dy - 4) ** 2 + (dx - 4) ** 2
            weight = math.exp(-distance / (2 * max(width, 1e-3) ** 2))
            total += weight * padded[:, dy : dy + 11, dx : dx + 9]
            weights += weight
        np.testing.assert_allclose(each.numpy(), total / weights, atol=1e-3)
    assert torch.equal(found[0], x[0])


def test_blur_keeps_the_sum_and_has_a_width_of_each_image() -> None:
    point = torch.zeros(300, 1, 33, 33)
    point[:, :, 16, 16] = 1
    seen = only(point, blur=2.0).double()
    torch.testing.assert_close(
        seen.sum((1, 2, 3)), torch.ones(300).double(), atol=1e-5, rtol=0
    )
    # of two neighbours: exp(-1 / (2 width^2))
    ratio = seen[:, 0, 16, 17] / seen[:, 0, 16, 16]
    torch.testing.assert_close(seen[:, 0, 17, 16], seen[:, 0, 16, 17])
    assert_uniform((-2 * ratio.log()).rsqrt(), 0, 2)
    # a Gaussian that is wider than the image
    still = torch.full((2, 3, 2, 5), 7.0)
    torch.testing.assert_close(only(still, blur=9.0), still)
    assert torch.equal(only(still[..., :1, :1], blur=9.0), still[..., :1, :1])


def test_erase_hides_a_rectangle_behind_the_mean() -> None:
    x = images(400, 2, 64, 96)
    for most in (0.2, 1.0):
        seen = only(x, erase=most)
        hidden = (seen != x).any(1)
        mean = moments(x)[0].float().expand_as(x)
        where = hidden[:, None].expand_as(x)
        torch.testing.assert_close(seen[where], mean[where])
        sides = boxes(hidden).double() / torch.tensor([64, 96])
        assert_uniform(sides.prod(1), 0, most, 0.03)
        large = sides[sides.amin(1) > 0.2]
        assert float((large[:, 0] / large[:, 1]).log().abs().max()) < math.log(3.4)
        # anywhere in the image
        middle = hidden.double().mean(0)
        assert float((middle - middle.flip(0, 1)).abs().max()) < 0.12


def test_mask_hides_whole_squares() -> None:
    x = images(60, 2, 20, 30)
    seen = only(x, mask=0.3, mask_size=8)
    hidden = (seen != x).all(1)
    assert torch.equal(hidden, (seen != x).any(1))
    mean = moments(x)[0].float().expand_as(x)
    torch.testing.assert_close(seen, torch.where(hidden[:, None], mean, x))
    # three rows and four columns of squares, those at the end cut off
    squares = hidden[:, ::8, ::8]
    assert squares.shape == (60, 3, 4)
    whole = squares.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(hidden, whole[:, :20, :30])
    assert float(squares.double().mean()) == pytest.approx(0.3, abs=0.05)
    counts = squares.sum((1, 2)).double()
    assert float(counts.var()) == pytest.approx(12 * 0.3 * 0.7, rel=0.5)
    everything = only(x, mask=1.0, mask_size=8)
    torch.testing.assert_close(everything, mean.clone())


def test_cutmix_pastes_of_the_neighbour_for_the_teacher_too() -> None:
    x = images(400, 2, 64, 64)
    seen, clean = view(x, cutmix=0.6)
    assert torch.equal(seen, clean)
    other = torch.cat([x[-1:], x[:-1]])
    pasted = (seen != x).any(1)
    assert torch.equal(seen, torch.where(pasted[:, None], other, x))
    mixed = pasted.any(2).any(1)
    assert float(mixed.double().mean()) == pytest.approx(0.6, abs=0.08)
    sides = boxes(pasted[mixed]).double() / 64
    assert_uniform(sides.prod(1), 0, 0.5)
    # the other steps are the student's alone, and of what was mixed
    brighter, again = view(x, cutmix=0.6, brightness=0.5)
    assert torch.equal(again, clean)
    one_each((brighter - clean) / moments(clean)[1])
    assert torch.equal(view(x[:1], cutmix=1.0)[0], x[:1])


def test_without_a_step_it_is_the_very_tensor() -> None:
    x = images(2, 3, 8, 8)
    seen, clean = view(x)
    assert seen is x and clean is x
    off = {**dict.fromkeys(ALL, 0), 'mask_size': 8}
    assert build_view(off, 'view', True) is None
    assert build_view({}, 'view', True) is None
    assert build_view(None, 'view', True) is None


def test_the_side_of_what_is_not_covered_is_refused() -> None:
    message = r"^view\.mask_size: the side of the squares of 'mask', which is not given"
    for cfg in (dict(mask_size=16), dict(blur=1.0, mask_size=16)):
        with pytest.raises(ValueError, match=message):
            build_view(cfg, 'view', True)


def test_nothing_else_is_moved_or_changed() -> None:
    x = images(4, 3, 16, 16)
    before = x.clone()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    first = view(x, **ALL)
    assert torch.equal(x, before)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(5)
    for one, other in zip(first, view(x, **ALL)):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], view(x, seed=1, **ALL)[0])


def test_the_layout_in_memory_does_not_matter() -> None:
    x = images(3, 3, 16, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    for one, other in zip(view(x, **ALL), view(last, **ALL)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_a_dtype_is_kept(dtype: torch.dtype) -> None:
    # as wide as an image that is not normalised
    x = images(4, 3, 64, 64).clamp(0, 255).to(dtype)
    for name in ALL.keys() - {'mask_size'}:
        seen, clean = view(x, **{name: ALL[name], 'mask_size': 3})
        expected, _ = view(x.float(), **{name: ALL[name], 'mask_size': 3})
        assert seen.dtype == clean.dtype == dtype
        wrong = (seen.float() - expected).abs() > 40 * 0.05
        # a rectangle may be a line of pixels wider
        assert float(wrong.float().mean()) < 0.06, name


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(
                digit_version(torch.__version__) < digit_version('2.4'),
                reason='this PyTorch has no float16 autocast on a CPU',
            ),
        ),
    ],
)
def test_autocast_of_the_student_changes_no_view(dtype: torch.dtype) -> None:
    # an image of 16 bits, which overflows in half precision
    images = 65535 * torch.rand(2, 3, 16, 16)
    view = View(brightness=0.5, contrast=0.5, color=0.5, blur=1.0, noise=0.2, erase=0.2)
    expected, _ = view(images, generator_of(images.device, 1))
    with torch.autocast('cpu', dtype=dtype):
        seen, _ = view(images, generator_of(images.device, 1))
    assert torch.equal(seen, expected)
