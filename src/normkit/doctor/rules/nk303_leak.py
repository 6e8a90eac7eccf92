"""Batches tell the labels, or are domains of their own.

What it checks
    Whether the model does better on the evaluation batches with the statistics of each batch than
    with any statistics of all of them, by more than two points, beyond chance; and whether the
    labels of these batches differ by more than chance.

Why it is bad
    Then the batches themselves carry what is to be predicted: their samples were put together by
    class, by subject or by sequence, and batch normalization lets each sample see its neighbours.
    Training accuracy is high for that alone, and no statistics bring it back for one sample.
    Where labels do not differ the batches are of several domains, such as cameras or sites.

Example
    A batch made of two classes; positive and negative crops of the same images (Wu & Johnson 2021,
    section 6); frames of one video in one batch.

Use instead
    Compose batches at random, or take statistics over the whole batch of all processes, or
    normalize each sample by itself (nk.GroupNorm).

When it is right
    Where the model is always used on such batches, all at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.order import labels_between_batches
from normkit.doctor.scores import gain_between

YIELDS_TO = ("NK113", "NK119", "NK213")
POINTS, SHARE = 2.0, 0.05


def check(exam: Examination) -> Iterator[Finding]:
    """Find evaluation batches whose own statistics help more than statistics of all."""
    evaluation = exam.evaluation
    if evaluation is None or evaluation.by_batch is None or not evaluation.score.exists:
        return
    others = [evaluation.score, *evaluation.tried.values()]
    better = max if evaluation.score.unit == "points" else min
    best = better(others, key=lambda one: one.value)
    gain = gain_between(best, evaluation.by_batch)
    if gain is None or gain.unit != "points" or gain.low <= 0 or gain.change <= POINTS:
        return
    survey = evaluation.survey
    share, sure = 0.0, False
    if survey.labels is not None and survey.batch is not None:
        share, sure = labels_between_batches(survey.labels, survey.batch)
    cause, do = (
        ("the batches are composed by label, and so tell it.", "compose batches at random")
        if sure and share > SHARE
        else (
            "each batch is like a domain of its own, whose statistics fit it better.",
            "a normalization by domain (nk.DomainBatchNorm2d), or batches that mix them",
        )
    )
    yield Finding(
        "warning",
        (),
        f"With the statistics of each evaluation batch the model scores {gain.after:.1f} %, with "
        f"the best statistics of all of them {gain.before:.1f} % ({gain}; threshold {POINTS:g}): "
        f"{cause}",
        f"{do}, or normalize each sample by itself, nk.GroupNorm",
        gain.change,
    )
