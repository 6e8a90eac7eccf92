"""Batches are not alike.

What it checks
    Whether the training batches differ in their labels, or in the mean and deviation of their
    inputs, by more than chance makes batches of samples drawn at random differ; how much, as the
    share of the variance that lies between batches.

Why it is bad
    Batch normalization takes the statistics of a batch for those of the data. Where batches come
    by class, by domain or by file, it learns to tell batches apart, training looks better than it
    is, and no running statistics fit evaluation.

Example
    DataLoader(dataset, batch_size=64) of a data set that is sorted by class, without shuffle=True;
    a stream read file after file with a short shuffle buffer.

Use instead
    DataLoader(dataset, batch_size=64, shuffle=True), a longer buffer, or files interleaved; or
    normalization without batch statistics (nk.GroupNorm).

When it is right
    In training of several domains with statistics of their own (nk.DomainBatchNorm2d); in metric
    learning, whose batches are P classes of K samples, if evaluation is recalibrated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.order import between_batches, labels_between_batches

SHARE = 0.05


def check(exam: Examination) -> Iterator[Finding]:
    """Find training batches that differ beyond chance."""
    using = any(one.kind == "batch" and not one.frozen for one in exam.norms)
    if exam.training is None or not using:
        return
    survey = exam.training.survey
    shares = {}
    if survey.labels is not None and survey.batch is not None:
        shares["labels"] = labels_between_batches(survey.labels, survey.batch)
    if survey.inputs is not None:
        features = torch.cat([survey.inputs.means, survey.inputs.deviations], 1)
        shares["inputs"] = between_batches(features, survey.inputs.batch)
    differ = {what: share for what, (share, sure) in shares.items() if share > SHARE and sure}
    if not differ:
        return
    share = max(differ.values())
    yield Finding(
        "warning",
        (),
        f"The {' and '.join(differ)} of training batches differ beyond chance: "
        f"{100 * share:.0f} % of the variance lies between batches (threshold "
        f"{100 * SHARE:.0f} %). They are composed, or come in an order: by class, domain or file.",
        "DataLoader(..., shuffle=True)",
        share,
    )
