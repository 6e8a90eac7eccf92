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
    In training of several domains with statistics of their own (nk.DomainBatchNorm2d).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

SHARE = 0.05
SIGNIFICANT = 6.0
"""Standard errors beyond chance; many features are looked at."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find training batches that differ beyond chance."""
    if exam.training is None or not any(one.kind == "batch" for one in exam.norms):
        return
    survey = exam.training.survey
    candidates = []
    if survey.labels is not None and survey.batch is not None:
        classes = torch.unique(survey.labels, return_inverse=True)[1]
        if 1 < int(classes.max()) + 1 <= len(classes) // 2:
            hot = torch.nn.functional.one_hot(classes).double()
            candidates.append(("labels", between_batches(hot, survey.batch)))
    if survey.inputs is not None:
        features = torch.cat([survey.inputs.means, survey.inputs.deviations], 1)
        candidates.append(("inputs", between_batches(features, survey.inputs.batch)))
    differ = [(what, share) for what, (share, sure) in candidates if share > SHARE and sure]
    if not differ:
        return
    share = max(value for _, value in differ)
    yield Finding(
        "warning",
        (),
        f"The {' and '.join(what for what, _ in differ)} of training batches differ beyond chance: "
        f"{100 * share:.0f} % of the variance lies between batches (threshold "
        f"{100 * SHARE:.0f} %), which come in an order, such as by class, domain or file.",
        "DataLoader(..., shuffle=True)",
        share,
    )


def between_batches(features: Tensor, batch: Tensor) -> tuple[float, bool]:
    """Return the share of the variance between batches (intraclass correlation), and if it is sure.

    One-way analysis of variance, averaged over features that vary; chance gives a ratio of 1.

    Args:
        features: (N, F), float64.
        batch: (N,), the number of each sample's batch.
    """
    count = torch.bincount(batch).double()
    groups = len(count)
    within_freedom = len(features) - groups
    if groups < 3 or within_freedom < groups:
        return 0.0, False
    centred = features - features.mean(0)
    sums = torch.zeros(groups, features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, batch, centred) / count[:, None]
    between = (count[:, None] * means.square()).sum(0) / (groups - 1)
    within = (centred - means[batch]).square().sum(0) / within_freedom
    total = centred.square().sum(0)
    varies = total > 1e-12 * features.square().sum(0).clamp_min(1e-300)
    if not bool(varies.any()):
        return 0.0, False
    between, within = between[varies], within[varies]
    # Features weigh alike; one without variance within batches lies between them wholly.
    size = float((len(features) - count.square().sum() / len(features)) / (groups - 1))
    share = ((between - within) / (between + (size - 1) * within)).mean()
    ratio = (between / within.clamp_min(1e-12 * between)).clamp_max(1e6).mean()
    sure = float(ratio) > 1 + SIGNIFICANT * math.sqrt(2 / (groups - 1))
    return float(share), sure
