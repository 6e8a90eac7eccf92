"""Say by how much batches differ beyond chance: one-way analysis of variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["between_batches", "labels_between_batches"]

SIGNIFICANT = 6.0
"""Standard errors beyond chance; many features are looked at."""


def between_batches(features: Tensor, batch: Tensor) -> tuple[float, bool]:
    """Return the share of the variance between batches (intraclass correlation), and if it is sure.

    Averaged over features that vary; chance gives a ratio of 1.

    Args:
        features: (N, F), float64.
        batch: (N,), the number of each sample's batch.
    """
    count = torch.bincount(batch).double()
    count = count[batch.unique()]
    number = torch.unique(batch, return_inverse=True)[1]
    groups = len(count)
    if groups < 3 or len(features) < 2 * groups:
        return 0.0, False
    centred = features - features.mean(0)
    sums = torch.zeros(groups, features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, number, centred) / count[:, None]
    between = (count[:, None] * means.square()).sum(0)
    total = centred.square().sum(0)
    varies = total > 1e-12 * features.square().sum(0).clamp_min(1e-300)
    return _share(between[varies], (total - between)[varies].clamp_min(0), count)


def labels_between_batches(labels: Tensor, batch: Tensor) -> tuple[float, bool]:
    """Return the same of the classes' indicators, by their counts in each batch.

    Args:
        labels: (N,) integers.
        batch: (N,), the number of each sample's batch.
    """
    classes, kind = torch.unique(labels, return_inverse=True)
    number = torch.unique(batch, return_inverse=True)[1]
    groups = int(number.max()) + 1 if len(number) else 0
    # Labels that hardly repeat are numbers of samples.
    if groups < 3 or not 1 < len(classes) <= len(labels) // 2 or len(labels) < 2 * groups:
        return 0.0, False
    counts = torch.bincount(number * len(classes) + kind, minlength=groups * len(classes))
    counts = counts.view(groups, -1).double()
    size = counts.sum(1)
    shares = counts.sum(0) / size.sum()
    between = (counts.square() / size[:, None]).sum(0) - size.sum() * shares.square()
    total = size.sum() * shares * (1 - shares)
    return _share(between, (total - between).clamp_min(0), size)


def _share(between: Tensor, within: Tensor, count: Tensor) -> tuple[float, bool]:
    """Compare sums of squares between and within batches, by feature, of batches so large."""
    groups, samples = len(count), float(count.sum())
    if not len(between):
        return 0.0, False
    between, within = between / (groups - 1), within / (samples - groups)
    size = (samples - float(count.square().sum()) / samples) / (groups - 1)
    share = (between - within) / (between + (size - 1) * within)
    ratio = (between / within.clamp_min(1e-12 * between)).clamp_max(1e6).mean()
    sure = float(ratio) > 1 + SIGNIFICANT * math.sqrt(2 / (groups - 1))
    return float(share.mean()), sure
