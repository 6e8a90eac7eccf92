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

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.nn.stats_spec import has_own_forward

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
    """Return how many values share a mean; None where they are of the batch, or not known."""
    layer = one.layer
    if has_own_forward(layer):
        return None
    if isinstance(layer, _InstanceNorm):
        axes = layer._get_no_batch_dim() - 1
        return math.prod(shape[-axes:]) if one.stats is None and len(shape) > axes else None
    if isinstance(layer, nn.GroupNorm) and len(shape) > 1:
        return math.prod(shape[1:]) // layer.num_groups
    if isinstance(layer, nn.LayerNorm):
        return math.prod(layer.normalized_shape)
    return None
