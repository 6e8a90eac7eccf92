"""Evaluation data is another domain.

What it checks
    Whether the statistics of the layers' inputs on the evaluation batches differ from those on the
    training batches by more than a quarter of a deviation, or a quarter of the variance, beyond
    chance; layer by layer. A warning where statistics of the evaluation batches give a better score
    than those of the training batches, and than those that the model has.

Why it is bad
    Running statistics are training's. On images of another camera, hospital or weather the same
    weights with the new domain's statistics do much better (AdaBN, Li et al. 2016; for corrupted
    ImageNet 62 instead of 77 % mean corruption error, Schneider et al. 2020).

Example
    A model trained on daylight and used at night.

Use instead
    nk.recalibrate(model, batches_of_the_domain), which needs no labels, mixed as they come in use
    and not sorted by class; nk.adapt(model) where the domain is not known beforehand, which warns
    of sorted batches.

When it is right
    A gain there needs batches in which classes are mixed as in the domain itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding, Gain
from normkit.doctor.scores import gain_between
from normkit.doctor.treatments import RECALIBRATE, RECALIBRATE_ON_EVALUATION
from normkit.statistics.estimates.gaps import Gap, gap_between

YIELDS_TO = ("NK301",)
DIFFERENT, ERRORS = 0.25, 3.0
GAIN = 0.5
"""Points of accuracy that the gain has to reach at least."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose input has other statistics in evaluation."""
    training, evaluation = exam.training, exam.evaluation
    if training is None or evaluation is None:
        return
    if training.measured is None or evaluation.measured is None:
        return
    there = training.measured.layers
    gaps = {
        name: gap_between(there[name], here, exam.layers[name].eps)
        for name, here in evaluation.measured.layers.items()
        if name in there
    }
    shifted = {name: gap for name, gap in gaps.items() if _is_shifted(gap)}
    if not shifted:
        return
    worst = max(shifted.values(), key=lambda gap: gap.mean)
    gain = _over_others(exam)
    helps = gain is not None and gain.helps and (gain.unit == "loss" or gain.change > GAIN)
    yield Finding(
        "warning" if helps else "note",
        tuple(shifted),
        f"On the evaluation batches its input is {worst.mean:.2f} deviations and a factor of "
        f"{worst.variance:.2f} in the variance from that on the training batches (threshold "
        f"{DIFFERENT} and {1 + DIFFERENT}): another domain."
        + ("" if gain is None else f" Its own statistics: {gain}."),
        "nk.recalibrate(model, evaluation), without labels, on batches as they come in use; or "
        "nk.adapt(model), batch by batch",
        worst.mean,
        exam.recalibrate_on_evaluation(),
    )


def _is_shifted(gap: Gap) -> bool:
    return (gap.mean > DIFFERENT and gap.mean_errors > ERRORS) or (
        gap.variance > 1 + DIFFERENT and gap.variance_errors > ERRORS
    )


def _over_others(exam: Examination) -> Gain | None:
    """Compare statistics of the evaluation batches with the better of the others."""
    evaluation = exam.evaluation
    if evaluation is None or RECALIBRATE_ON_EVALUATION not in evaluation.tried:
        return None
    others = [evaluation.score, evaluation.tried.get(RECALIBRATE, evaluation.score)]
    here = evaluation.tried[RECALIBRATE_ON_EVALUATION]
    gains = [gain for other in others if (gain := gain_between(other, here)) is not None]
    return min(gains, key=lambda gain: gain.change, default=None)
