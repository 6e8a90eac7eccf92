"""Layer is called several times, on inputs that one set of statistics does not fit.

What it checks
    Whether the calls of a layer within one pass have inputs of means and variances so different
    that its running statistics are off for some of them, beyond chance.

Why it is bad
    In training each call normalizes by its own batch; evaluation has one mean and variance for all.
    Recalibration gives the mean of all calls, which fits none.

Example
    A detector's head shared by five feature levels; the two halves of a siamese network on two
    kinds of images; an encoder for clean and augmented images.

Use instead
    A layer for each call, one layer a domain (nk.DomainBatchNorm2d with nk.use_domain), or
    normalization without running statistics (nk.GroupNorm).

When it is right
    Where the calls' inputs have the same statistics, which are then not reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.statistics.results.shared_layers import describe_calls


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose calls need statistics of their own."""
    training = exam.training
    if training is None or training.consistency is None or not training.consistency.shared:
        return
    shared = training.consistency.shared
    first = shared[0]
    yield Finding(
        "warning",
        tuple(one.name for one in shared),
        f"One pass calls it several times, on inputs of different statistics: its running ones are "
        f"off by {describe_calls(first.calls)}, and no one set fits all calls.",
        "a layer for each call, nk.DomainBatchNorm2d, or nk.GroupNorm",
        max(gap.mean for gap in first.calls.values()),
    )
