"""Batches are too small for their layers.

What it checks
    How far the mean of one batch is off from that of the data, measured layer by layer, where
    batches have at most 32 samples; a note from 0.2 deviations, a warning from 0.4, of four
    samples or fewer from 0.3.

Why it is bad
    Each training step normalizes by such a mean, so that the same image gives other activations in
    every batch. A little of it regularizes; more costs accuracy: ResNet-50's error on ImageNet
    rises from 23.6 to 24.8, 27.3 and 34.7 % with batches of 32, 8, 4 and 2 (Wu & He 2018). In
    evaluation, whose statistics have no such noise, the network is then another one.

Example
    nn.BatchNorm2d in a detector or a segmenter trained with two images.

Use instead
    nk.GroupNorm in their place; statistics of all processes (nk.convert(model, "sync")); or frozen
    statistics, for a network that was trained on large batches (nk.freeze(model)).

When it is right
    Where a batch of few samples has many positions, which the measurement knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.noise import SMALL, batch_noise, noisy

YIELDS_TO = ("NK205",)
NOTE = 0.2


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose batch statistics are mostly noise."""
    if exam.training is None or exam.training.survey.batch_size > SMALL:
        return
    kinds = {one.name: one.kind for one in exam.norms}
    off = {
        name: noise
        for name, noise in batch_noise(exam).items()
        if noise > NOTE and kinds.get(name.partition("[")[0]) == "batch"
    }
    if not off:
        return
    worst, limit = max(off.values()), noisy(exam.training.survey.batch_size)
    yield Finding(
        "warning" if worst > limit else "note",
        tuple(off),
        f"With batches of {exam.training.survey.batch_size} the mean that a training step "
        f"normalizes by is off by {worst:.2f} deviations (threshold {limit}, a note from "
        f"{NOTE}): noise that is {100 * worst**2:.0f} % of the variance, and that evaluation does "
        "not have.",
        "nk.GroupNorm in its place, larger batches, or statistics of all processes",
        worst,
    )
