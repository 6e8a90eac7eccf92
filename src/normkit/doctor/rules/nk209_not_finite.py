"""Input of a layer is not finite.

What it checks
    Whether the training batches bring NaN or infinity into a layer that keeps running statistics.

Why it is bad
    One such batch makes the running statistics NaN for ever, as an average with NaN stays NaN, and
    with them every evaluation; training goes on with batch statistics and shows nothing.

Example
    A corrupt file; a division by the deviation of a constant image; float16 without loss scaling.

Use instead
    Find the batch (its number is in the message), mend or leave it out, then
    nk.recalibrate(model, train).

When it is right
    Never.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.errors import NonFiniteError


def check(exam: Examination) -> Iterator[Finding]:
    """Report why the layers could not be measured."""
    if exam.training is None or exam.training.problem is None:
        return
    problem = exam.training.problem
    finite = isinstance(problem, NonFiniteError)
    yield Finding(
        "error" if finite else "warning",
        (),
        f"The layers could not be measured on the training batches. {problem}",
        "find what makes the batch so, and leave it out" if finite else "see the message",
    )
