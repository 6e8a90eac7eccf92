"""Test figures image by image: recorded beside each metric, and read back.

From them the error is known that the choice of the test images brings
(:mod:`normkit.lab.crossed`). They are vectors of the metric's name, in the order of the test
images, which is the same in every run with as many of them:

* accuracy: which images were classified correctly, after each epoch, 48 of them in an integer, the
  first in its highest bit (10,000 images take 3.4 kB); of a run on several domains, the images in
  the first domain, then in the second;
* PSNR: that of each image after the last epoch, in dB, to a hundredth;
* nothing, ``[]``, for a figure that no choice of test images would change: the accuracy of a
  broken model, which counts at chance level, and that under the condition "train".

There is no vector where images cannot be told apart (the condition "composed" takes some of them
twice, others not at all), for losses, and in runs of an older normkit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from normkit.lab.config import RunConfig
from normkit.lab.data.domains import DOMAINS
from normkit.lab.runs import Run

__all__ = ["Images", "average", "combine", "pack", "to_vector", "unpack", "values_by_image"]

Images = np.ndarray | None
"""A number for each test image; a single one where they do not matter; None where unknown."""

_BITS = 48
"""Images in an integer: six bytes, few enough for programs that read numbers as float64."""


def combine(function: Callable[..., np.ndarray], *images: Images) -> Images:
    """Apply a linear function image by image; None where one is unknown or of other images.

    >>> combine(np.subtract, np.array([1.0]), np.array([0.0, 1.0])).tolist()
    [1.0, 0.0]
    """
    known = [each for each in images if each is not None]
    numbers = {len(each) for each in known if len(each) > 1}
    return function(*known) if len(known) == len(images) and len(numbers) < 2 else None


def average(images: Sequence[Images]) -> Images:
    """Average several figures image by image, as :func:`combine` does; None of none."""
    if not images:
        return None
    return combine(lambda *each: np.mean(np.broadcast_arrays(*each), axis=0), *images)


def pack(right: np.ndarray) -> list[int]:
    """Pack zeros and ones, 48 to an integer.

    >>> pack(np.array([1, 0, 1])) == [0b101 << 45]
    True
    """
    bits = np.zeros(-(-len(right) // _BITS) * _BITS, dtype=np.uint8)
    bits[: len(right)] = right
    whole = np.packbits(bits).reshape(-1, _BITS // 8).astype(np.int64)
    integers: list[int] = (whole << np.arange(_BITS - 8, -1, -8)).sum(axis=1).tolist()
    return integers


def unpack(integers: Sequence[float], count: int) -> np.ndarray:
    """Return the zeros and ones that :func:`pack` made ``count`` of.

    >>> unpack(pack(np.array([1, 0, 1])), 3).tolist()
    [1, 0, 1]
    """
    whole = np.array(integers, dtype=np.int64)[:, None] >> np.arange(_BITS - 8, -1, -8)
    return np.unpackbits((whole & 255).astype(np.uint8).ravel(), count=count)


def to_vector(config: RunConfig, epoch: int, values: Images) -> list[float] | list[int] | None:
    """Return what is recorded of the figures of the test images; None for nothing.

    Args:
        epoch: that has just ended, from 0.
        values: of each image; empty where the choice of images does not matter.
    """
    if values is None:
        return None
    if config.task == "classification":
        return pack(values)
    if epoch == config.epochs - 1 or not len(values):
        return [round(float(value), 2) for value in values]
    return None


def values_by_image(run: Run, metric: str, step: int, value: float | None) -> Images:
    """Return a run's metric at a step, image by image, whose mean is ``value``.

    A training metric depends on no test image.
    """
    if value is None:
        return None
    recorded = run.vectors.get(metric, {}).get(step) if metric.startswith("test_") else ()
    if recorded is None:
        return None
    if not len(recorded):
        return np.array([value])
    if run.config.task == "denoising":
        return np.array(recorded)
    images = run.config.test_images
    domains = len(DOMAINS[run.config.domains]) if run.config.domains else 1
    mean: np.ndarray = unpack(recorded, images * domains).reshape(domains, images).mean(axis=0)
    return mean
