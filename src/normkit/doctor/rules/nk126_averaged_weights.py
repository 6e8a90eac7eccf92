"""Averaged weights have the statistics of other weights.

What it checks
    Whether the model comes in torch.optim.swa_utils.AveragedModel after two updates or more; with
    training batches, whether its statistics are off.

Why it is bad
    The average is of weights. Its buffers are copied from the model at the last update, or, with
    use_buffers=True, averaged: neither are the statistics that the averaged weights produce.

Example
    averaged = AveragedModel(model); ...; evaluate(averaged)

Use instead
    nk.recalibrate(averaged, train), or torch.optim.swa_utils.update_bn(train, averaged), at the end
    and before each evaluation.

When it is right
    After a recalibration, which only training batches can show. A short exponential average is
    close to the model that it follows.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import averaging_wrapper, count, differs_from_training, never_moved


def check(exam: Examination) -> Iterator[Finding]:
    """Find averages whose statistics were not taken."""
    averaged = averaging_wrapper(exam.passed)
    if averaged is None or int(averaged.n_averaged) < 2:
        return
    norms = [one for one in exam.norms if one.stats is not None and not one.frozen]
    differs = {one.name: differs_from_training(exam, one) for one in norms}
    places = [o for o in norms if differs[o.name] is not False and not never_moved(o)]
    if not places:
        return
    measured = any(differs.values())
    source = "averages of statistics" if averaged.use_buffers else "those of the last weights"
    yield Finding(
        "warning" if measured else "note",
        tuple(one.name for one in places),
        f"The weights are an average of {int(averaged.n_averaged):,}, the statistics of "
        f"{count(places)} are {source}"
        + (", and differ from those of the training batches." if measured else
           ", unless they were taken anew since."),
        "nk.recalibrate(averaged, train)",
        float(averaged.n_averaged),
        exam.recalibrate(),
    )  # fmt: skip
