"""Test figures image by image: recorded beside each metric, and read back.

From them the error is known that the choice of the test images brings
(:mod:`normkit.lab.crossed`). They are vectors of the metric's name, in the order of the test
images, which is the same in every run with as many of them:

* accuracy: which images were classified correctly, 48 of them in an integer, the first in its
  highest bit (10,000 images take 3.4 kB); of a run on several domains, the images in the first
  domain, then in the second;
* loss and PSNR: the means of fifty blocks of neighbouring images, which say as well how much
  the choice of images matters, and take half a kilobyte;
* nothing, ``[]``, for a figure that no choice of test images would change: the accuracy of a
  broken model, which counts at chance level, and all that is measured under the condition "train".

There is no vector where images cannot be told apart (the condition "composed" takes some of them
twice, others not at all), and in runs of an older normkit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from normkit.lab.conditions import Condition, named
from normkit.lab.config import RunConfig
from normkit.lab.data.domains import DOMAINS
from normkit.lab.runs import Run
from normkit.lab.tasks import task_of

__all__ = [
    "Images",
    "average",
    "combine",
    "from_blocks",
    "pack",
    "to_blocks",
    "to_vectors",
    "unpack",
    "values_by_image",
]

Images = np.ndarray | None
"""A number for each test image; a single one where they do not matter; None where unknown."""

_PACKED = "test_accuracy"
_BITS = 48
"""Images in an integer: six bytes, few enough for programs that read numbers as float64."""

_MOST_BLOCKS = 50


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


def to_blocks(values: np.ndarray) -> list[float]:
    """Return the means of blocks of neighbouring images: fifty, or as many as there are images."""
    return [float(f"{block.mean():.5g}") for block in np.array_split(values, _blocks(len(values)))]


def from_blocks(means: Sequence[float], count: int) -> np.ndarray:
    """Return ``count`` values with the mean of these blocks, and the spread of single images.

    Blocks spread less than images do, by the root of their size, so their distances from the mean
    are scaled up by it. That is linear: the difference of two results is the difference's result.

    >>> from_blocks([1.0, 3.0], 8).round(2).tolist()
    [0.0, 0.0, 0.0, 0.0, 4.0, 4.0, 4.0, 4.0]
    """
    sizes = [len(block) for block in np.array_split(np.empty(count), len(means))]
    each: np.ndarray = np.repeat(np.array(means), sizes)
    centre = float(each.mean())
    return centre + math.sqrt(count / len(means)) * (each - centre)


def _blocks(count: int) -> int:
    return min(count, _MOST_BLOCKS)


def to_vectors(
    config: RunConfig, condition: Condition | None, figures: Images, losses: Images
) -> dict[str, Sequence[float]]:
    """Return what is recorded of the figures and losses of the test images, by metric.

    Args:
        condition: of the evaluation, None for the usual one.
        figures: of each image, domain after domain; empty where the choice of images does not
            matter, None where they cannot be told apart.
        losses: likewise.
    """
    vectors: dict[str, Sequence[float]] = {}
    for metric, values in ((f"test_{task_of(config).figure}", figures), ("test_loss", losses)):
        if values is None or not np.isfinite(values).all():
            continue
        name = named(metric, condition) if condition else metric
        if not len(values):
            vectors[name] = []
        elif metric == _PACKED:
            vectors[name] = pack(values)
        else:
            vectors[name] = to_blocks(values.reshape(_domains(config), -1).mean(axis=0))
    return vectors


def _domains(config: RunConfig) -> int:
    return len(DOMAINS[config.domains]) if config.domains else 1


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
    images, domains = run.config.test_images, _domains(run.config)
    if metric.partition("@")[0] != _PACKED:
        return from_blocks(recorded, images)
    mean: np.ndarray = unpack(recorded, images * domains).reshape(domains, images).mean(axis=0)
    return mean
