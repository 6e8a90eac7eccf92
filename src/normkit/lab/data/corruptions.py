"""Corrupt images as cameras and networks do: noise, blur, little contrast, fog, pixelation, light.

Seven of the corruptions of Hendrycks & Dietterich (2019, arXiv 1903.12261), and inversion, each
with five severities, written for images of one size and depth. All act on the uint8 pixels and give
uint8 pixels; what leaves 0 to 255 is clipped. Noise is drawn from a fixed seed by the place of the
image, so that an image is corrupted alike wherever it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.errors import OptionError, message
from normkit.lab.data.split import Split

__all__ = ["CORRUPTIONS", "SEVERITIES", "check_corruption", "corrupted"]

SEVERITIES = 5
_SEED = 1903


def _noise(pixels: Tensor, severity: int) -> Tensor:
    """Add Gaussian noise of a deviation from 0.08 to 0.38, where white is 1."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    generator = torch.Generator().manual_seed(_SEED)
    return pixels + 255 * deviation * torch.randn(pixels.shape, generator=generator)


def _blur(pixels: Tensor, severity: int) -> Tensor:
    """Blur with a Gaussian of a deviation from 0.6 to 2 pixels."""
    deviation = (0.6, 0.9, 1.2, 1.6, 2.0)[severity - 1]
    reach = 6
    line = torch.from_numpy(np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)).float()
    line = (line / line.sum()).view(1, 1, -1)
    count, channels, height, width = pixels.shape
    planes = pixels.reshape(count * channels, 1, height, width)
    planes = F.pad(planes, (reach,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, line.unsqueeze(2)), line.unsqueeze(3))
    return planes.reshape(count, channels, height, width)


def _contrast(pixels: Tensor, severity: int) -> Tensor:
    """Bring pixels nearer to the mean of their image, to a share from 0.4 to 0.05."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + share * (pixels - mean)


def _fog(pixels: Tensor, severity: int) -> Tensor:
    """Mix in light that grows from the bottom of the image to its top."""
    light = (0.3, 0.45, 0.6, 0.7, 0.8)[severity - 1]
    height = pixels.shape[2]
    share = light * torch.linspace(1.0, 0.5, height).view(1, 1, height, 1)
    return (1 - share) * pixels + share * 230


def _pixelate(pixels: Tensor, severity: int) -> Tensor:
    """Shrink to a share from 0.5 to 0.18 of the side and enlarge again without smoothing."""
    share = (0.5, 0.36, 0.29, 0.22, 0.18)[severity - 1]
    height, width = pixels.shape[2:]
    small = (max(1, round(share * height)), max(1, round(share * width)))
    shrunk = F.interpolate(pixels, small, mode="area")
    return F.interpolate(shrunk, (height, width), mode="nearest-exact")


def _impulse(pixels: Tensor, severity: int) -> Tensor:
    """Make a share from 3 to 27 % of the pixels black or white, all channels of a pixel alike."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    generator = torch.Generator().manual_seed(_SEED + 1)
    drawn = torch.rand(pixels[:, :1].shape, generator=generator)
    white = (drawn < share / 2).expand_as(pixels)
    black = (drawn > 1 - share / 2).expand_as(pixels)
    return pixels.masked_fill(white, 255).masked_fill(black, 0)


def _brightness(pixels: Tensor, severity: int) -> Tensor:
    """Add from a tenth to half of white to all pixels."""
    return pixels + 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]


def _inversion(pixels: Tensor, severity: int) -> Tensor:
    """Mix in the negative, from a share of 0.4 to the negative alone; from 0.5 on edges reverse."""
    share = (0.4, 0.6, 0.75, 0.9, 1.0)[severity - 1]
    return (1 - share) * pixels + share * (255 - pixels)


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "fog": _fog,
    "pixelation": _pixelate,
    "impulse": _impulse,
    "brightness": _brightness,
    "inversion": _inversion,
}
"""Corruptions by name, each a function of float32 pixels from 0 to 255 and of the severity; a
condition of evaluation counts them from 1, so that new ones come last."""


def check_corruption(kind: int, severity: int) -> None:
    """Raise if there is no such corruption.

    Raises:
        OptionError: a kind or a severity outside its range.
    """
    for name, value, most in (("kind", kind, len(CORRUPTIONS)), ("severity", severity, SEVERITIES)):
        if not 1 <= value <= most:
            kinds = ", ".join(f"{at} {each}" for at, each in enumerate(CORRUPTIONS, 1))
            raise OptionError(
                message(
                    f"a corruption's {name} from 1 to {most} (kinds: {kinds})",
                    repr(value),
                    "choose one of these",
                )
            )


def corrupted(split: Split, kind: int, severity: int) -> Split:
    """Return a split with corrupted images; labels, order and standardisation stay the same.

    >>> split = Split(torch.full((1, 1, 4, 4), 100, dtype=torch.uint8), torch.tensor([3]))
    >>> corrupted(split, kind=4, severity=1).images[0, 0, :, 0].tolist()
    [139, 132, 126, 120]
    """
    check_corruption(kind, severity)
    change = tuple(CORRUPTIONS.values())[kind - 1]
    pixels = change(split.images.float(), severity).round().clamp(0, 255).to(torch.uint8)
    return Split(pixels, split.labels, split.mean, split.std)
