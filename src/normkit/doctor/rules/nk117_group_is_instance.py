"""GroupNorm with as many groups as channels is InstanceNorm.

What it checks
    Whether a group normalization has one channel a group.

Why it is bad
    Each channel of each sample then loses its own mean and scale, which often carry what a
    classifier needs: how strongly a feature is present. On maps of 1 × 1 every output is β.

Example
    nn.GroupNorm(64, 64)

Use instead
    nn.GroupNorm(32, 64) or fewer groups (Wu & He 2018, arXiv 1803.08494).

When it is right
    Where instance normalization is meant, as in style transfer, or to take away what an image's
    contrast says.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count


def check(exam: Examination) -> Iterator[Finding]:
    """Find group normalizations of single channels."""
    norms = [
        one for one in exam.norms
        if isinstance(one.layer, nn.GroupNorm) and one.layer.num_groups == one.layer.num_channels
    ]  # fmt: skip
    if norms:
        yield Finding(
            "note",
            tuple(one.name for one in norms),
            f"GroupNorm has one channel a group in {count(norms)}: that is InstanceNorm.",
            "nn.GroupNorm(32, channels), or fewer groups",
            float(len(norms)),
        )
