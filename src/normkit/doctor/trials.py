"""Try what findings propose, and let what it brings have a say in how severe they are."""

from __future__ import annotations

import dataclasses
import warnings

from normkit.doctor.examination import Evaluation, Examination
from normkit.doctor.finding import Finding, Gain, Treatment
from normkit.doctor.scores import gain_between, score
from normkit.errors import StatisticsError

__all__ = ["all_gains", "gain_of", "with_gains"]

NOTHING = 0.5
"""Points of accuracy that are too few to matter."""


def with_gains(exam: Examination, findings: list[Finding]) -> list[Finding]:
    """Try what findings propose, each treatment once, and add what it brings."""
    evaluation = exam.evaluation
    if evaluation is None or not evaluation.score.exists:
        return findings
    measured = []
    for one in findings:
        treatment = one.treatment or one.trial
        if treatment is not None and treatment.trial:
            if treatment.key not in evaluation.tried:
                _try(exam, evaluation, treatment)
            one = _tempered(dataclasses.replace(one, gain=gain_of(exam, treatment.key)))
        measured.append(one)
    return measured


def _try(exam: Examination, evaluation: Evaluation, treatment: Treatment) -> None:
    """Score the model with a treatment, and undo it; one that cannot be done has no score."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            handle = treatment.apply()
        except StatisticsError:
            return
        try:
            evaluation.tried[treatment.key] = score(
                exam.model, evaluation.batches, samples=exam.options.samples,
                forward=exam.options.forward, loss=exam.options.loss,
            )  # fmt: skip
        finally:
            handle.undo()


def _tempered(one: Finding) -> Finding:
    """Lower a finding whose mend makes the score worse, or whose off statistics cost nothing.

    Of the causes only where the mend is all that there is to do. Weights that fit a fault give
    right results, with which training was worse off: such an error is a warning.
    """
    gain = one.gain
    if gain is None or one.treatment is None:
        return one
    harmless = gain.unit == "points" and gain.low > -NOTHING and gain.high < NOTHING
    if harmless and one.rule >= "NK2":  # of the rules before, the next training would meet it again
        return dataclasses.replace(one, severity="note")
    if gain.high >= 0:
        return one
    return dataclasses.replace(
        one,
        severity="warning" if one.severity == "error" else "note",
        do=f"leave it for now, as mending it alone makes the score worse; what it would take: "
        f"{one.do}, and further training at a smaller rate",
    )


def gain_of(exam: Examination, key: str) -> Gain | None:
    """Return what a treatment brings; None if it was not tried."""
    evaluation = exam.evaluation
    if evaluation is None or key not in evaluation.tried:
        return None
    return gain_between(evaluation.score, evaluation.tried[key])


def all_gains(exam: Examination) -> dict[str, Gain]:
    """Return what each treatment that was tried brings, by its key."""
    keys = () if exam.evaluation is None else tuple(exam.evaluation.tried)
    gains = {key: gain_of(exam, key) for key in keys}
    return {key: gain for key, gain in gains.items() if gain is not None}
