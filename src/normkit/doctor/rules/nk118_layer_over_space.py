"""LayerNorm over channels and space fits one input size.

What it checks
    Whether a layer normalization has a normalized_shape of three axes or more, such as channels,
    height and width.

Why it is bad
    It only takes inputs of that size. Unless elementwise_affine is off it has a γ and a β for every
    place, so the network is no longer the same everywhere in the image, and most of its parameters
    may be there.

Example
    nn.LayerNorm([64, 28, 28]): 100,352 parameters

Use instead
    nn.GroupNorm(1, 64): the same mean and variance, γ and β for each channel, inputs of any size.
    Or nk.LayerNorm2d(64), over the channels of each place.

When it is right
    Where all inputs have one size, and places are to be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

AXES = 3


def check(exam: Examination) -> Iterator[Finding]:
    """Find layer normalizations of one input size."""
    norms = {
        one.name: one.layer
        for one in exam.norms
        if isinstance(one.layer, nn.LayerNorm) and len(one.layer.normalized_shape) >= AXES
    }
    if norms:
        layer = max(norms.values(), key=lambda layer: math.prod(layer.normalized_shape))
        largest, size = layer.normalized_shape, math.prod(layer.normalized_shape)
        affine = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
        words = " and ".join({"weight": "a γ", "bias": "a β"}[name] for name in affine)
        yield Finding(
            "note",
            tuple(norms),
            f"LayerNorm over {' × '.join(map(str, largest))} takes inputs of that size only"
            + (f", and has {words} for each of {size:,} values." if words else "."),
            f"nn.GroupNorm(1, {largest[0]})",
            float(size),
        )
