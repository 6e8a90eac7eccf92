"""Mean and variance are of one value.

What it checks
    How many values share one mean in the layers that normalize each sample by itself (group,
    instance, layer normalization), for the shape that the first batch has there.

Why it is bad
    One value minus its own mean is zero: the layer puts out β whatever comes in, and no gradient
    passes. Of two values only the sign of their difference is left. Instance normalization in
    training mode refuses it; group and layer normalization do not.

Example
    nn.GroupNorm(64, 64) behind nn.AdaptiveAvgPool2d(1)

Use instead
    Fewer groups, nn.GroupNorm(8, 64), or the layer before the pooling.

When it is right
    Never with one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm

FEW = 2


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that normalize so few values that nothing of them is left."""
    values = {}
    for one in exam.norms:
        shape = exam.flow.shapes.get(one.name)
        if shape is not None and (number := _values(one, shape)) is not None and number <= FEW:
            values[one.name] = number
    if not values:
        return
    least = min(values.values())
    yield Finding(
        "error" if least == 1 else "warning",
        tuple(values),
        f"Each mean and variance is of {least} value{'s' * (least > 1)} "
        f"(threshold {FEW}): "
        + ("the output is β, whatever comes in." if least == 1 else "only a sign is left of them."),
        "fewer groups, or the layer before the pooling",
        least,
    )


def _values(one: Norm, shape: tuple[int, ...]) -> int | None:
    """Return how many values share a mean, or None where they are of the whole batch."""
    if one.kind == "batch" or len(shape) < 2:
        return None
    if one.kind == "instance":
        return math.prod(shape[2:]) if one.stats is None else None
    if one.kind == "group":
        groups = getattr(one.layer, "num_groups", None)
        return math.prod(shape[1:]) // groups if isinstance(groups, int) and groups else None
    normalized = getattr(one.layer, "normalized_shape", None)
    return math.prod(normalized) if one.kind == "layer" and normalized else None
