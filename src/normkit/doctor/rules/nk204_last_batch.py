"""Last batch of an epoch is incomplete.

What it checks
    Whether the last batch of the training loader has at most four tenths of the size of the others.

Why it is bad
    Evaluation usually follows right after it. The running statistics are then, by the momentum, a
    tenth those of a few samples, and the weights have just taken a step on their noise. 60,000
    images in batches of 256 end with 96: dropping them was worth 2.7 points of the textbook LeNet's
    test accuracy and 1.3 with population statistics. A batch of one value per channel stops
    training with an error.

Example
    DataLoader(dataset, batch_size=256, shuffle=True)

Use instead
    DataLoader(dataset, batch_size=256, shuffle=True, drop_last=True)

When it is right
    In evaluation; in training without layers that use batch statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import still_in_training

SMALL = 0.4


def check(exam: Examination) -> Iterator[Finding]:
    """Find a training loader whose last batch is much smaller than the others."""
    if exam.training is None:
        return
    survey = exam.training.survey
    last, size = survey.last, survey.batch_size
    still = still_in_training(exam)
    using = [one for one in exam.norms if one.kind == "batch" and id(one.layer) not in still]
    if not last or not using or last > SMALL * size or survey.total == last:
        return
    stopped = [one.name for one in using if last == 1 and _one_value(exam, one.name)]
    total = f" ({survey.total:,} samples)" if survey.total else ""
    says = (
        f"The last batch of an epoch has {last} of {size} samples{total}, threshold "
        f"{SMALL:g} of a batch: "
    )
    says += (
        "a layer with one value per channel refuses it, and training stops with a ValueError."
        if stopped
        else "in the running statistics it weighs as much as a full one, right before evaluation, "
        "and the last step is a noisy one."
    )
    yield Finding(
        "error" if stopped else "warning",
        tuple(stopped),
        says,
        "DataLoader(..., drop_last=True)",
        last / size,
    )


def _one_value(exam: Examination, name: str) -> bool:
    shape = exam.flow.shapes.get(name)
    return shape is not None and math.prod(shape[2:]) == 1
