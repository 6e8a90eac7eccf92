"""Denoising: the noise, the loss, and the figure of merit.

Gaussian noise is added to images whose pixels lie between 0 (black) and 1 (white), and the noisy
image is not clipped: what the network sees is the image and noise that is independent of it.
PSNR, the peak signal-to-noise ratio, is 10 log10(1 / error) dB, with the mean squared error of one
image's pixels; of several images it is the mean of theirs.

Source: Chen et al. 2021 (HINet), arXiv 2105.06086, whose loss and figure these are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["handed_back", "noise_level", "noisy", "psnr", "psnr_loss"]

_FLOOR = 1e-8
"""Squared error below which an image counts as restored: 80 dB, far beyond any network here. It
keeps the logarithm finite; the source adds the same number in its loss."""


def noisy(
    batches: Iterator[tuple[Tensor, Tensor]],
    deviation: float,
    spread: float = 0.0,
    *,
    seed: int,
    epoch: int = 0,
    shuffle: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (noisy, clean) from pairs (clean, labels).

    The noise depends on ``seed``, ``epoch`` and the place of the batch in the epoch only, not on
    the global generator, and not on the device that the network is on. Images in order
    (``shuffle=False``), as test images come, have noise of their own. With a ``spread`` s each
    image has a deviation of its own, drawn evenly from ``deviation`` · [1 − s, 1 + s].

    >>> clean = iter([(torch.zeros(1, 1, 2, 2), torch.tensor([7]))])
    >>> images, targets = next(noisy(clean, 0.1, seed=0))
    >>> bool(images.any()), bool(targets.any())
    (True, False)
    """
    for place, (images, _) in enumerate(batches):
        # The first batch in order starts from the same number as the epoch's order, which is drawn
        # by another function.
        state = np.random.SeedSequence([seed, epoch, place, int(shuffle)]).generate_state(
            1, np.uint64
        )
        generator = torch.Generator().manual_seed(int(state[0]) >> 1)
        noise = torch.randn(images.shape, generator=generator)
        if spread:
            drawn = torch.rand((len(images), 1, 1, 1), generator=generator)
            noise *= 1 + spread * (2 * drawn - 1)
        yield torch.add(images, noise, alpha=deviation), images


def noise_level(deviation: float, spread: float) -> float:
    r"""Return the mean over images of the noise's :math:`10 \log_{10} \sigma^2`, in dB.

    >>> noise_level(0.1, 0.0), round(noise_level(0.1, 0.8), 2)
    (-20.0, -21.19)
    """
    if not spread:
        return 20 * math.log10(deviation)
    low, high = 1 - spread, 1 + spread
    mean = (high * math.log(high) - low * math.log(low)) / (high - low) - 1
    return 20 * (math.log10(deviation) + mean / math.log(10))


def psnr_loss(restored: Tensor, clean: Tensor, /, *, reduction: str) -> Tensor:
    """Return the negative PSNR, in dB: the lower, the better.

    The restored image is not clipped here, so that a pixel outside [0, 1] is pulled back.

    >>> clean = torch.zeros(2, 1, 4, 4)
    >>> round(psnr_loss(clean + 0.1, clean, reduction="mean").item(), 2)
    -20.0
    """
    errors = (restored - clean).square().mean(dim=(1, 2, 3)) + _FLOOR
    losses = 10 * errors.log10()
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the PSNR of each image, in dB. Restored images are clipped to [0, 1] first.

    What is not a number counts as black.

    >>> clean = torch.zeros(2, 1, 4, 4)
    >>> psnr(clean - 3, clean).tolist()
    [80.0, 80.0]
    >>> [round(each, 2) for each in psnr(clean + 0.1, clean).tolist()]
    [20.0, 20.0]
    """
    shown = restored.nan_to_num(nan=0.0).clamp(0, 1)
    errors = (shown.double() - clean.double()).square().mean(dim=(1, 2, 3)) + _FLOOR
    return -10 * errors.log10()


def handed_back(batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the PSNR of the noisy images themselves, in dB: the chance level of each."""
    return torch.cat([psnr(images, clean) for images, clean in batches])
