"""Momentum is so small that the average hardly moves.

What it checks
    Whether the momentum of a layer with running statistics is above 0 and below 0.0005. It is a
    note where the statistics fit the training batches, where enough batches were counted, in a
    model that was not trained yet, and where statistics moved though no batch was counted: they
    come from elsewhere, as in converted networks.

Why it is bad
    An average at momentum m looks back 1/m batches and needs about 3/m to forget the mean 0 and
    variance 1 that it starts with: at 0.0001 that is 30,000 batches. Until then evaluation
    normalizes with a start that has nothing to do with the data, later with outdated weights.

Example
    nn.BatchNorm2d(64, momentum=1e-4)

Use instead
    nn.BatchNorm2d(64, momentum=0.1), or 0.01 for small batches; nk.recalibrate(model, train) if it
    is trained.

When it is right
    In trainings of several hundred thousand batches, such as MNASNet's (momentum 0.0003).
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import (
    affine_moved,
    count,
    differs_from_training,
    never_moved,
    still_in_training,
)
from normkit.doctor.treatments import MOMENTUM, set_attributes, together
from normkit.statistics.layers.find import batch_counter

YIELDS_TO = ("NK109",)
SMALL, FORGOTTEN = 5e-4, 0.01


def check(exam: Examination) -> Iterator[Finding]:
    """Find averages that look back too far."""
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if one.stats is not None and id(one.layer) not in still and 0 < (one.momentum or 0) < SMALL
    ]  # fmt: skip
    if not norms:
        return
    least = min(one.momentum or SMALL for one in norms)
    right = all(_is_right(exam, one) for one in norms)
    yield Finding(
        "note" if right else "warning",
        tuple(one.name for one in norms),
        f"Momentum {least:g} in {count(norms)} (threshold {SMALL:g}): the average needs about "
        f"{3 / least:,.0f} batches to forget the mean 0 and variance 1 that it starts with.",
        "momentum=0.1; then nk.recalibrate(model, train)",
        least,
        together(set_attributes("momentum", norms, {"momentum": MOMENTUM}), exam.recalibrate()),
    )


def _is_right(exam: Examination, one: Norm) -> bool:
    """Recalibrated, converted, or trained for long enough, or not yet."""
    differs = differs_from_training(exam, one)
    if differs is not None:
        return not differs
    counter = batch_counter(one.layer)
    batches = 0 if counter is None else int(counter.max())
    forgotten = (1 - (one.momentum or 0)) ** batches < FORGOTTEN
    if never_moved(one):
        return not affine_moved(one)
    return forgotten or batches == 0
