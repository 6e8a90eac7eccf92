"""Half of a layer is frozen: γ and β, but not the running statistics, which still move.

What it checks
    Whether the γ and β of a layer have requires_grad off, while model.train() puts the layer into
    training mode and other parameters of the model train.

Why it is bad
    requires_grad says nothing about statistics. Each batch still normalizes itself and moves the
    average, so the frozen backbone is another function at every step, drifts to the statistics of
    the new and often small data, and no longer fits its own frozen weights.

Example
    for p in backbone.parameters(): p.requires_grad = False

Use instead
    nk.freeze(backbone), which holds the statistics too, through model.train().

When it is right
    Where the statistics shall adapt to the new data, and the batches are large; in the momentum
    encoders of self-supervised learning.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import affine_parameters, count, still_in_training
from normkit.doctor.treatments import freezing


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers of which one half is frozen."""
    if not any(p.requires_grad for p in exam.model.parameters()):
        return
    still = still_in_training(exam)
    norms = []
    for one in exam.norms:
        if one.stats is None or id(one.layer) in still or one.momentum == 0:
            continue
        affine = affine_parameters(one)
        if affine and not any(p.requires_grad for p in affine):
            norms.append(one)
    if norms:
        yield Finding(
            "warning",
            tuple(one.name for one in norms),
            f"γ and β are frozen (requires_grad=False) in {count(norms)} whose running statistics "
            "move with every batch in training mode, while other parameters train.",
            "nk.freeze(backbone), and model.train() leaves it frozen",
            float(len(norms)),
            freezing(norms),
        )
