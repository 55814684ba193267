"""Views: the student sees perturbed images, its teacher the clean ones.

Nothing moves within an image, so that all predictions stay where they are.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmselfdistill.errors import check_choice, check_number, check_whole

Size = Tuple[int, int]

_HIGHEST = dict(
    brightness=math.inf,
    contrast=1.0,
    color=1.0,
    noise=math.inf,
    blur=math.inf,
    erase=1.0,
    mask=1.0,
    cutmix=1.0,
)
# a Gaussian is cut off where it is below a hundredth of its peak
_CUT = 3.0


@dataclass(frozen=True)
class View:
    r"""A random perturbation of a batch of images, each by its own draw.

    Images are those that the model is given, normalised or not: strengths are in units
    of the standard deviation :math:`\sigma` of the image at hand, :math:`\mu` its mean,
    each channel by itself. A strength of 0 leaves its step out, and all 0 the images
    bitwise as they are. The steps, in order, with :math:`u` uniform in [-1, 1]:

    ==========  =====================================================================
    cutmix      with this probability, a rectangle of another image of the batch, for
                teacher and student alike: only of images without labels (arXiv
                1905.04899)
    brightness  :math:`x + u \, s \, \sigma`
    contrast    :math:`\mu + (1 + u s)(x - \mu)`
    color       :math:`g + (1 + u s)(x - g)`, :math:`g` the mean of the channels
    blur        a Gaussian, of a width uniform in [0, s] pixels
    noise       :math:`x + v \, \sigma \epsilon`, :math:`v` uniform in [0, s],
                :math:`\epsilon` normal, of each pixel and channel
    erase       a rectangle of an area uniform in [0, s] of the image becomes
                :math:`\mu` (arXiv 1708.04896)
    mask        each square of ``mask_size`` pixels becomes :math:`\mu` with this
                probability (MIC, arXiv 2212.01322)
    ==========  =====================================================================

    Use :func:`build_view` to make one from a config: it checks the values.

    Args:
        brightness (float): Defaults to 0.0.
        contrast (float): In [0, 1]. Defaults to 0.0.
        color (float): In [0, 1]. Defaults to 0.0.
        noise (float): Defaults to 0.0.
        blur (float): In pixels. Defaults to 0.0.
        erase (float): In [0, 1]. Defaults to 0.0.
        mask (float): In [0, 1]. Defaults to 0.0.
        mask_size (int): In pixels. Defaults to 32.
        cutmix (float): In [0, 1]. Defaults to 0.0.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    color: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    mask: float = 0.0
    mask_size: int = 32
    cutmix: float = 0.0

    def __str__(self) -> str:
        """Return the strengths above 0."""
        strengths = {key: getattr(self, key) for key in _HIGHEST}
        return ', '.join(f'{key}={v:g}' for key, v in strengths.items() if v > 0)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        sizes: Sequence[Size] | None = None,
        made_up: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the student sees, and what the teacher sees.

        Args:
            images (Tensor): (N, C, H, W). They are not changed.
            generator (torch.Generator): On their device.
            sizes (Sequence, optional): Height and width of each without its padding.
                Defaults to None: there is none.
            made_up (Tensor, optional): (N, 1, H, W), pixels that no other image gets.
                Defaults to None: there are none.

        Returns:
            tuple[Tensor, Tensor]: Both (N, C, H, W), as the images.
        """
        draw = _Draw(images, generator, sizes)
        clean = self._mixed(images, draw, made_up) if self.cutmix > 0 else images
        std, mean = _spread(clean, sizes)
        seen = clean
        if self.brightness > 0:
            seen = seen + draw.uniform(-self.brightness, self.brightness) * std
        if self.contrast > 0:
            factor = 1 + draw.uniform(-self.contrast, self.contrast)
            seen = mean + factor * (seen - mean)
        if self.color > 0:
            grey = seen.mean(1, keepdim=True)
            seen = grey + (1 + draw.uniform(-self.color, self.color)) * (seen - grey)
        if self.blur > 0:
            seen = self._blurred(seen, draw.uniform(0, self.blur), sizes)
        if self.noise > 0:
            seen = seen + draw.uniform(0, self.noise) * std * draw.normal()
        if self.erase > 0:
            hidden = draw.rectangle(draw.uniform(0, self.erase))
            seen = torch.where(hidden, mean, seen)
        if self.mask > 0:
            seen = torch.where(draw.blocks(self.mask, self.mask_size), mean, seen)
        return seen, clean

    def _blurred(
        self, images: Tensor, widths: Tensor, sizes: Sequence[Size] | None
    ) -> Tensor:
        if sizes is None or _whole(images, sizes):
            return blurred(images, widths, self.blur)
        found = images.clone()
        # each by itself: what its padding holds is not mixed into it
        for i, (height, width) in enumerate(sizes):
            inside = (slice(i, i + 1), slice(None), slice(height), slice(width))
            found[inside] = blurred(images[inside], widths[i : i + 1], self.blur)
        return found

    def _mixed(self, images: Tensor, draw: _Draw, made_up: Tensor | None) -> Tensor:
        mixes = draw.uniform(0, 1) < self.cutmix
        # a permutation without a fixed point: the next image, in a circle
        pasted = draw.rectangle(draw.uniform(0, 0.5)) & mixes
        # not of its padding
        pasted = pasted & draw.within().roll(1, 0)
        if made_up is not None:
            pasted = pasted & ~made_up.roll(1, 0)
        return torch.where(pasted, images.roll(1, 0), images)


class _Draw:
    """Random numbers for a batch of images, (N, 1, ...) each."""

    def __init__(
        self,
        images: Tensor,
        generator: torch.Generator,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        self._images = images
        self._sizes = None if _whole(images, sizes) else sizes
        self._settings: dict[str, Any] = dict(device=images.device, generator=generator)

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = self._rand(len(self._images), 1, 1, 1)
        return (low + (high - low) * drawn).to(self._images)

    def normal(self) -> Tensor:
        return torch.randn(self._images.shape, **self._settings).to(self._images)

    def rectangle(self, area: Tensor) -> Tensor:
        """Return (N, 1, H, W): a rectangle of a share of each image, somewhere in it.

        Its height is up to three times its width, or the other way round.
        """
        ratio = torch.exp(self.uniform(-1, 1).float() * math.log(3) / 2)
        area = area.float()
        # neither side is longer than the image
        height = torch.maximum((area.sqrt() * ratio).clamp(max=1), area)
        width = area / height.clamp(min=1e-6)
        return self._span(height, 2) & self._span(width, 3)

    def _span(self, length: Tensor, dim: int) -> Tensor:
        places = self._places(dim)
        begin = self.uniform(0, 1).float() * (1 - length)
        return (places >= begin) & (places < begin + length)

    def within(self) -> Tensor:
        """Return (N or 1, 1, H, W): which pixels are of an image, not padding."""
        return (self._places(2) < 1) & (self._places(3) < 1)

    def _places(self, dim: int) -> Tensor:
        """Return where each pixel is along a side, as a share of its image's."""
        size = self._images.shape[dim]
        shape = [1, 1, 1, 1]
        shape[dim] = size
        places = torch.arange(size, device=self._images.device).view(shape) + 0.5
        if self._sizes is None:
            return places / size
        # numbers are not copied to the device: that would wait for it
        return torch.cat([places / each[dim - 2] for each in self._sizes])

    def blocks(self, share: float, side: int) -> Tensor:
        """Return (N, 1, H, W): squares, each with a probability."""
        n, _, height, width = self._images.shape
        grid = self._rand(n, 1, -(-height // side), -(-width // side)) < share
        whole = grid.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return whole[:, :, :height, :width]

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, **self._settings)


def blurred(images: Tensor, widths: Tensor, widest: float) -> Tensor:
    """Return images convolved with a Gaussian, each with its own.

    Args:
        images (Tensor): (N, C, H, W).
        widths (Tensor): (N, 1, 1, 1), standard deviations in pixels.
        widest (float): The largest that there may be.
    """
    n, c, height, width = images.shape
    radius = min(math.ceil(_CUT * widest), height - 1, width - 1)
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (places / widths.float().view(n, 1).clamp(min=1e-3)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    # not every PyTorch has these in half precision on a CPU
    dtype = torch.promote_types(images.dtype, torch.float32)
    kernel = kernel.to(dtype).repeat_interleave(c, 0)[:, None, None]
    flat = images.reshape(1, n * c, height, width).to(dtype)
    flat = F.pad(flat, [radius] * 4, mode='reflect')
    # the student's autocast would convolve in half precision: 16 bit overflow there
    with torch.autocast(images.device.type, enabled=False):
        flat = F.conv2d(flat, kernel, groups=n * c)
        flat = F.conv2d(flat, kernel.transpose(2, 3), groups=n * c)
    return flat.view(n, c, height, width).to(images.dtype)


def build_view(cfg: object, where: str, labels: bool) -> View | None:
    """Make a view of what a user wrote.

    Args:
        cfg (Mapping | None): The settings of :class:`View`, or None for no view.
        where (str): The setting's full name, for messages.
        labels (bool): Whether the images have labels, which cannot be mixed.

    Returns:
        View | None: None where nothing is perturbed.

    Raises:
        ValueError: If a key is unknown, or a value is not a number in its range.
    """
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping):
        raise ValueError(
            f'{where}: expected a dict such as dict(brightness=0.5, blur=1.0), or '
            f'None, but got {cfg!r}'
        )
    valid = list(inspect.signature(View).parameters)
    for key in cfg:
        check_choice(where, key, valid)
    values: dict[str, Any] = {
        key: check_number(f'{where}.{key}', cfg[key], 0.0, _HIGHEST[key])
        for key in cfg
        if key != 'mask_size'
    }
    side = check_whole(f'{where}.mask_size', cfg.get('mask_size', View.mask_size), 1)
    if 'mask_size' in cfg and 'mask' not in cfg:
        raise ValueError(
            f"{where}.mask_size: the side of the squares of 'mask', which is not "
            'given; give mask, the share that is covered, or remove mask_size'
        )
    if labels and values.get('cutmix'):
        raise ValueError(
            f'{where}.cutmix: labels are not mixed: set it in the view of images '
            'without labels, unlabeled=dict(view=dict(cutmix=...))'
        )
    view = View(mask_size=side, **values)
    return view if any(values.values()) else None


def _whole(images: Tensor, sizes: Sequence[Size] | None) -> bool:
    """Say whether no image is padded."""
    return sizes is None or all(size == images.shape[2:] for size in sizes)


def _spread(images: Tensor, sizes: Sequence[Size] | None) -> tuple[Tensor, Tensor]:
    """Return standard deviation and mean of each channel, (N, C, 1, 1)."""
    if sizes is None or _whole(images, sizes):
        return torch.std_mean(images, (2, 3), unbiased=False, keepdim=True)
    whole = [image[:, :h, :w] for image, (h, w) in zip(images, sizes)]
    found = [torch.std_mean(x, (1, 2), unbiased=False, keepdim=True) for x in whole]
    stds, means = zip(*found)
    return torch.stack(stds), torch.stack(means)
