"""Average still remembers its start.

What it checks
    Whether the statistics that a layer was made with, mean 0 and variance 1, still weigh more than
    one part in a hundred in its average, (1 − momentum) to the power of the batches it has had;
    and whether this explains most of what the average is off.

Why it is bad
    Evaluation normalizes with a mixture of what the layer was made with and what it has seen.

Example
    nn.BatchNorm2d(64, momentum=0.001) trained for 500 batches: 61 % of the variance is still the 1
    it began with. Or a momentum of 0.1 after ten batches: 35 %.

Use instead
    nk.recalibrate(model, train); for training on, momentum=0.1 or average="debiased".

When it is right
    In the first steps of a training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.statistics.estimates.layer_statistics import LayerStatistics, distance

YIELDS_TO = ("NK101", "NK103", "NK109", "NK120")
SHARE = 0.01


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose average is not yet one of what they have seen."""
    training = exam.training
    if training is None or training.consistency is None or training.measured is None:
        return
    shares = {}
    for name, gap in training.consistency.layers.items():
        layer, norm = exam.layers[name], exam.norm(name)
        momentum, counter = norm.momentum if norm is not None else None, layer.counter
        if momentum is None or not 0 < momentum < 1 or counter is None or counter.numel() != 1:
            continue
        share = (1 - momentum) ** int(counter)
        # A converted or loaded network may have a count of 0 and statistics that are right.
        if not int(counter) or share <= SHARE or not gap.matters:
            continue
        running = layer.stats(None)
        # What the average would be without its start.
        mean, variance = running[0] / (1 - share), (running[1] - share) / (1 - share)
        measured = training.measured.layers[name]
        if _size(mean, variance, measured, layer.eps) < _size(*running, measured, layer.eps) / 2:
            shares[name] = share
    if not shares:
        return
    worst = max(shares.values())
    yield Finding(
        "warning",
        tuple(shares),
        f"Of the average, {100 * worst:.0f} % is still the mean 0 and variance 1 that the layer "
        f"was made with (threshold {100 * SHARE:.0f} %): it has had too few batches for its "
        "momentum.",
        "nk.recalibrate(model, train)",
        worst,
        exam.recalibrate(),
    )


def _size(mean: Tensor, variance: Tensor, measured: LayerStatistics, eps: float) -> float:
    """Distance from what was measured, of the mean and the variance together."""
    step, factor = distance(mean, variance.clamp_min(0), measured, eps)
    return step + math.log(factor)
