"""Evaluation leaves samples out.

What it checks
    Whether the evaluation loader drops its last batch.

Why it is bad
    The score is one of some of the samples; which, depends on the order. Dropping the last batch is
    for training, whose batch statistics it disturbs; evaluation uses none.

Example
    DataLoader(test, batch_size=256, drop_last=True)

Use instead
    DataLoader(test, batch_size=256)

When it is right
    Where all processes must have equally many batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding


def check(exam: Examination) -> Iterator[Finding]:
    """Find an evaluation loader that drops samples."""
    survey = None if exam.evaluation is None else exam.evaluation.survey
    if survey is None or survey.last != 0 or not survey.total:
        return
    number = survey.total % survey.batch_size
    yield Finding(
        "note",
        (),
        f"The evaluation loader drops its last batch: {number:,} of {survey.total:,} samples are "
        "never scored.",
        "DataLoader(..., drop_last=False) for evaluation",
        number / survey.total,
    )
