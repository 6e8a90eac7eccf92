"""Running statistics are not those of the training batches.

What it checks
    Whether the running statistics of a layer are further than 0.1 deviations, or a tenth of the
    variance, from those of the training batches under the present weights, and more than chance. A
    warning from twice that on, or where replacing them is measured to bring half a point.

Why it is bad
    Evaluation normalizes with what is remembered. An average along training describes weights
    that the model no longer has, and the last few batches most.

Example
    Weights changed after training (averaged, pruned, merged), a learning rate that stays high to
    the end, training stopped soon after its start.

Use instead
    nk.recalibrate(model, train), which takes seconds; then save the model.

When it is right
    Where the statistics are meant to be those of other data, such as a domain to be served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.treatments import RECALIBRATE
from normkit.doctor.trials import gain_of
from normkit.statistics.estimates.gaps import MIN_GAP

WARNING, POINTS = 0.2, 0.5
YIELDS_TO = (
    "NK101", "NK102", "NK103", "NK104", "NK105", "NK109", "NK120", "NK121", "NK126", "NK202",
    "NK203", "NK210", "NK213",
)  # fmt: skip


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose running statistics are far from those of the training batches."""
    training = exam.training
    if training is None or training.consistency is None:
        return
    off = {name: gap for name, gap in training.consistency.layers.items() if gap.matters}
    if not off:
        return
    worst = max(off.values(), key=lambda gap: max(gap.mean, abs(gap.variance - 1)))
    counters = [one.counter for one in exam.layers.values() if one.counter is not None]
    fresh = not exam.trained and not any(bool(counter.any()) for counter in counters)
    large = max(worst.mean, worst.variance - 1) > WARNING or not math.isfinite(worst.mean)
    yield Finding(
        "warning" if (large or _helps(exam)) and not fresh else "note",
        tuple(off),
        f"Running statistics are off by {worst.mean:.2f} deviations and a factor of "
        f"{worst.variance:.2f} in the variance (threshold {MIN_GAP} and {1 + MIN_GAP}, a warning "
        f"from {WARNING} and {1 + WARNING}): they are not those of the training batches under "
        "these weights.",
        "nk.recalibrate(model, train)",
        worst.mean,
        exam.recalibrate(),
    )


def _helps(exam: Examination) -> bool:
    """Return True if population statistics are measured to bring enough to matter."""
    gain = gain_of(exam, RECALIBRATE)
    return gain is not None and gain.helps and (gain.unit == "loss" or gain.change > POINTS)
