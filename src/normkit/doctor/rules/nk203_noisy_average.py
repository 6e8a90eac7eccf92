"""Average is too noisy.

What it checks
    Whether the batches differ so much, and each replaces so large a share, that the running
    statistics of a layer are off by a tenth of a deviation by chance alone; and whether they are.
    With the usual momentum and very noisy batches, the batches are to blame (NK206).

Why it is bad
    Evaluation jumps from checkpoint to checkpoint, while the training loss falls smoothly: the last
    few batches decide what evaluation normalizes with.

Example
    Batches of 4 with a momentum of 0.1; batches of 64 with one of 0.9.

Use instead
    nk.recalibrate(model, train), for training on a smaller momentum, or larger batches.

When it is right
    Never on purpose; it may be tolerable in training if each checkpoint is recalibrated.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.noise import SMALL, batch_noise, noisy, of_average
from normkit.doctor.treatments import MOMENTUM
from normkit.statistics.estimates.gaps import MIN_GAP

YIELDS_TO = ("NK104", "NK202", "NK205")
LARGEST = 3.0
"""Gaps of more than so many times the noise have another cause."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose gap is what chance makes of such batches and such a momentum."""
    training = exam.training
    if training is None or training.consistency is None:
        return
    off = {}
    size = training.survey.batch_size
    small, limit = size <= SMALL, noisy(size)
    for name, noise in batch_noise(exam).items():
        norm, gap = exam.norm(name), training.consistency.layers.get(name)
        if norm is None or gap is None or not norm.momentum or not gap.matters:
            continue
        if small and noise > limit and norm.momentum <= MOMENTUM:  # the batches' fault: NK206
            continue
        expected = of_average(noise, min(norm.momentum, 1.0))
        if expected > MIN_GAP and gap.mean <= LARGEST * expected:
            off[name] = expected
    if not off:
        return
    name, worst = max(off.items(), key=lambda item: item[1])
    norm = exam.norm(name)
    momentum = norm.momentum if norm is not None else None
    yield Finding(
        "warning",
        tuple(off),
        f"With batches of {training.survey.batch_size} and a momentum of {momentum:g} the running "
        f"mean is off by {worst:.2f} deviations by chance alone (threshold {MIN_GAP}), and it is: "
        "the last few batches decide what evaluation normalizes with.",
        "nk.recalibrate(model, train), for each checkpoint; or a smaller momentum",
        worst,
        exam.recalibrate(),
    )
