"""Running statistics are not those of the training batches.

What it checks
    Whether the running statistics of a layer are further than 0.1 deviations, or a tenth of the
    variance, from those of the training batches under the present weights, and more than chance.

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

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

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
    yield Finding(
        "warning",
        tuple(off),
        f"Running statistics are off by {worst.mean:.2f} deviations and a factor of "
        f"{worst.variance:.2f} in the variance (threshold 0.1 and 1.1): they are not those of the "
        "training batches under these weights.",
        "nk.recalibrate(model, train)",
        worst.mean,
        exam.recalibrate(),
    )
