"""Momentum is the share kept, not the share replaced.

What it checks
    Whether the momentum of a layer whose running statistics move in training is above 0.5.

Why it is bad
    In PyTorch the momentum is the share of the running statistics that each batch replaces, 0.1 by
    default. TensorFlow, Keras and many papers give the share that is kept, 0.9 or 0.99. Passed to
    PyTorch, it makes the statistics those of the last batch or two: evaluation then jumps from one
    checkpoint to the next while training goes on smoothly.

Example
    nn.BatchNorm2d(64, momentum=0.99)

Use instead
    nn.BatchNorm2d(64, momentum=0.01), and recalibrate a model that is trained already.

When it is right
    Where each batch is all of the data, or the running statistics are never used.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import still_in_training
from normkit.doctor.treatments import MOMENTUM, set_attributes, together

LARGE = 0.5


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose average is one of a batch or two."""
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if one.stats is not None and (one.momentum or 0) > LARGE and id(one.layer) not in still
    ]  # fmt: skip
    if not norms:
        return
    value = max(one.momentum or 0 for one in norms)
    meant = round(1 - value, 6) or MOMENTUM
    turned = {"momentum": lambda layer: round(1 - layer.momentum, 6) or MOMENTUM}
    yield Finding(
        "warning",
        tuple(one.name for one in norms),
        f"Momentum {value:g}, the share that each batch replaces: the running statistics are those "
        f"of the last batch or two (threshold {LARGE}). It was likely meant as the share kept.",
        f"momentum={meant:g}; then nk.recalibrate(model, train)",
        value,
        together(set_attributes("momentum", norms, turned), exam.recalibrate()),
    )
