"""Running statistics are not finite, or a variance is negative.

What it checks
    Whether a running mean or variance is NaN or infinite, or a variance is below 0.

Why it is bad
    Evaluation returns NaN, or 0 for a whole channel where the variance is infinite. One batch with
    an infinite value is enough, and the average never forgets it: training goes on with the
    statistics of each batch and looks healthy. A negative variance comes from arithmetic on
    statistics, such as E[x²] − E[x]², a difference of two models, or an extrapolated average.

Example
    A batch with NaN that a gradient scaler skipped: the weights did not move, the statistics did.

Use instead
    nk.recalibrate(model, train), which measures them anew under the present weights.

When it is right
    Never.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count, values_of

YIELDS_TO = ("NK209",)
"""While the data brings them, statistics taken anew would have them again."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that no evaluation survives."""
    infinite, negative, places = 0, 0, []
    for one in exam.norms:
        mean, var = values_of(one) or (None, None)
        if mean is None or var is None:
            continue
        bad, below = ~(mean.isfinite() & var.isfinite()), var < 0
        if bool((bad | below).any()):
            places.append(one.name)
            infinite, negative = infinite + int(bad.sum()), negative + int(below.sum())
    if places:
        yield Finding(
            "error",
            tuple(places),
            f"{infinite:,} channels have statistics that are NaN or infinite and {negative:,} a "
            f"negative variance, in {count(places)}: evaluation gives NaN or silences them, and no "
            "further training mends an average that is not finite.",
            "nk.recalibrate(model, train)",
            float(infinite + negative),
            exam.recalibrate(),
        )
