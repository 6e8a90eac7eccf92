"""Make batches from a split in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from normkit.errors import OptionError, message
from normkit.lab.checks import choice, whole
from normkit.lab.data.split import Split

__all__ = ["batches"]


def _per_channel(what: str, value: Sequence[float] | None, channels: int) -> torch.Tensor:
    if value is None:
        raise OptionError(
            message(
                f"a split with {what}, to standardize its batches",
                "a split without it",
                "pass mean and std, e.g. from train.moments()",
            )
        )
    values = torch.tensor([float(v) for v in value])
    if len(values) != channels:
        raise OptionError(
            message(
                f"one {what} for each of {channels} channels",
                repr(value),
                f"pass {channels} values",
            )
        )
    return values.reshape(1, channels, 1, 1)


def order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of an epoch: a permutation that depends on the arguments only.

    >>> torch.equal(order(9, seed=0, epoch=1), order(9, seed=0, epoch=1))
    True
    """
    # SeedSequence keeps (0, 1) and (1, 0) apart, as a sum of the two would not.
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]) >> 1)
    return torch.randperm(count, generator=generator)


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    shuffle: bool = True,
    size: int | None = None,
    fit: str = "resize",
    drop_last: bool = False,
    channels_last: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch: float32 images (B, C, size, size), standardised, and int64 labels (B,).

    ``x = (pixel / 255 − mean) / std``, per channel, with the moments of the training images. Each
    batch is gathered by index from the one uint8 tensor and converted after that, which is as fast
    as keeping a float32 copy and needs a quarter of the memory. Resizing also happens batch by
    batch: 60,000 images of 96×96 would be 2.2 GB at once.

    The order depends on ``seed`` and ``epoch`` only. The global generator is neither used nor
    moved, so drawing weights or dropout masks does not change the data, nor the data them.

    Args:
        split: what to take the batches from.
        batch_size: images in a batch; the last may be smaller.
        seed: of the run, 0 or more.
        epoch: counts from 0; each has an order of its own.
        shuffle: False keeps the split's order, as evaluation wants.
        size: side of the images that come out, in pixels; None leaves them as they are.
        fit: "resize" scales them to ``size`` (bilinear, antialiased where it shrinks them); "pad"
            puts black around them, equally on all sides, and one pixel more at the right and at
            the bottom where it does not come out even.
        drop_last: leave out a last batch that is not full.
        channels_last: in ``torch.channels_last`` format.
        mean: per channel; None takes the split's.
        std: per channel; None takes the split's.

    Raises:
        OptionError: a number outside its range, no moments, ``fit="pad"`` to a smaller size. All
            of them when called, not at the first batch.
        TypeMismatchError: a number that is not an int.

    >>> pixels = torch.full((5, 1, 4, 4), 51, dtype=torch.uint8)
    >>> split = Split(pixels, torch.tensor([0, 1, 2, 3, 4]), mean=(0.1,), std=(0.5,))
    >>> for images, labels in batches(split, 2, seed=0, shuffle=False):
    ...     print(tuple(images.shape), round(images[0, 0, 0, 0].item(), 3), labels.tolist())
    (2, 1, 4, 4) 0.2 [0, 1]
    (2, 1, 4, 4) 0.2 [2, 3]
    (1, 1, 4, 4) 0.2 [4]
    """
    whole("batch_size", batch_size)
    whole("seed", seed, 0)
    whole("epoch", epoch, 0)
    _, channels, height, width = split.images.shape
    if size is not None:
        whole("size", size)
    choice("fit", fit, ("resize", "pad"))
    if fit == "pad" and size is not None and size < max(height, width):
        raise OptionError(
            message(
                f"a size of at least {max(height, width)} to pad {height}×{width} images to",
                f"size={size}",
                "use fit='resize'",
            )
        )
    centre = _per_channel("mean", split.mean if mean is None else mean, channels)
    spread = _per_channel("std", split.std if std is None else std, channels)
    if not bool((spread > 0).all()):
        raise OptionError(
            message("std above 0", repr(spread.flatten().tolist()), "use 1 for a constant channel")
        )
    # One multiplication and one subtraction for each pixel.
    scale, shift = 1 / (255 * spread), centre / spread
    picked = order(len(split), seed, epoch) if shuffle else None
    stop = len(split) - (len(split) % batch_size if drop_last else 0)
    resized = size is not None and (height, width) != (size, size)

    def generate() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, stop, batch_size):
            chosen = slice(start, start + batch_size)
            if picked is None:
                pixels, labels = split.images[chosen], split.labels[chosen].clone()
            else:
                pixels = split.images.index_select(0, picked[chosen])
                labels = split.labels.index_select(0, picked[chosen])
            if resized and size is not None and fit == "pad":
                rows, columns = size - height, size - width
                edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
                pixels = F.pad(pixels, edges)
            images = pixels.to(torch.float32).mul_(scale).sub_(shift)
            if resized and size is not None and fit == "resize":
                # After standardising: both are linear, and there are fewer pixels before.
                shrinks = size < max(height, width)
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=shrinks)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels

    return generate()
