r"""The error that the choice of the test images brings, beside that of the seeds.

A difference between two arms is measured with a few seeds on one set of test images, the same for
all of them: seeds and images are crossed. With other images of the same kind it would have come out
otherwise, by an amount that no number of seeds makes smaller. For S seeds and I images, with both
drawn at random from many,

.. math::
    d_{si} = \mu + a_s + b_i + e_{si}, \qquad
    \operatorname{var} \bar d = \frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{I}
    + \frac{\sigma_e^2}{S I}.

The variance of the seeds' means, divided by S, estimates the first and the last term; this file
the second, from two-way analysis of variance: the variance of the images' means, divided by I, less
that part of it which is residual, and never below zero. It is the ``shared`` part of
:func:`normkit.lab.verdicts.interval`, which knows the degrees of freedom.

Radiology knows the design as "multiple readers, multiple cases", where readers stand for seeds:
Obuchowski & Rockette 1995, Communications in Statistics 24, with the degrees of freedom of Hillis
2007, Statistics in Medicine 26. ``benchmarks/lab_coverage.py`` measures on real networks how often
such an interval contains the effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from normkit.lab.by_image import Images

__all__ = ["ImageError", "image_error"]


class ImageError(NamedTuple):
    """The part of a mean's standard error that the choice of ``images`` test images adds.

    0 images: none is known.
    """

    deviation: float
    images: int


def image_error(seeds: Sequence[Images]) -> ImageError:
    """Estimate it from each seed's difference, image by image.

    A seed whose difference depends on no image has a single number. Nothing is estimated where one
    is unknown (None), of other images than the rest, or the only one.

    >>> always_better = [np.array([1.0, 1.0, 0.0, 0.0])] * 2
    >>> print(f"{image_error(always_better).deviation:.3f}")
    0.289
    >>> image_error([np.array([1.0, 0.0, 0.0, 0.0]), None])
    ImageError(deviation=0.0, images=0)
    """
    known = [each for each in seeds if each is not None]
    count = max((len(each) for each in known), default=0)
    if (
        len(known) < max(2, len(seeds))
        or count < 2
        or any(len(each) not in (1, count) for each in known)
    ):
        return ImageError(0.0, 0)
    d = np.stack([np.broadcast_to(each, count) for each in known])
    of_seeds, of_images = d.mean(axis=1, keepdims=True), d.mean(axis=0)
    freedom = (len(d) - 1) * (count - 1)
    residual = float(np.square(d - of_seeds - of_images + d.mean()).sum()) / freedom
    variance = float(of_images.var(ddof=1)) / count - residual / d.size
    return ImageError(math.sqrt(max(0.0, variance)), count)
