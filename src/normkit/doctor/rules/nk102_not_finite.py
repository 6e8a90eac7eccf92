"""Running statistics, γ or β are not finite, or a variance is negative.

What it checks
    Whether a running mean or variance, a γ or a β is NaN or infinite, or a variance is below 0.
    Statistics are left to NK209 while the data itself brings such values.

Why it is bad
    Evaluation returns NaN, or 0 for a whole channel where the variance is infinite. One batch with
    an infinite value is enough, and the average never forgets it: training goes on with the
    statistics of each batch and looks healthy. A negative variance comes from arithmetic on
    statistics, such as E[x²] − E[x]², a difference of two models, or an extrapolated average.
    A γ or β that is not finite comes from a step that was not; no later step mends it.

Example
    A batch with NaN that a gradient scaler skipped: the weights did not move, the statistics did.

Use instead
    nk.recalibrate(model, train), which measures statistics anew under the present weights. For γ
    and β, a checkpoint from before; then a lower rate, or clipped gradients.

When it is right
    Never.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parameter import is_lazy

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import count, values_of
from normkit.errors import NonFiniteError


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that no evaluation survives."""
    # While the data brings them, statistics taken anew would have them again.
    problem = exam.training.problem if exam.training is not None else None
    if not isinstance(problem, NonFiniteError):
        yield from _of_statistics(exam)
    channels = {one.name: _not_finite(one) for one in exam.norms}
    places = tuple(name for name, number in channels.items() if number)
    if places:
        number = sum(channels.values())
        yield Finding(
            "error",
            places,
            f"{count(range(number), 'value')} of γ and β NaN or infinite, in {count(places)}: so "
            "is what these channels send out, in training too, and no further training mends them.",
            "go back to a checkpoint from before; then a lower rate, or clipped gradients",
            float(number),
        )


def _not_finite(one: Norm) -> int:
    tensors = [t for t in (one.weight, one.bias) if t is not None]
    known = [t.detach() for t in tensors if not t.is_meta and not is_lazy(t)]
    return sum(int((~tensor.isfinite()).sum()) for tensor in known)


def _of_statistics(exam: Examination) -> Iterator[Finding]:
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
