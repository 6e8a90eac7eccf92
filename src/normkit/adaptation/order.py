r"""Notice a stream whose batches are not mixtures of it, such as one sorted by label.

Batch means of a shuffled stream differ by chance alone: the variance between them is that within
batches over the batch size. In a sorted one each batch has a mean of its own. So it is an analysis
of variance with the batches as groups, on what a layer normalizes: each sample's mean and deviation
over space, channel by channel. A shift of the whole stream moves all batches alike and leaves it as
it is. With :math:`m_{bi}` of batch b and sample i, each divided by its deviation within batches,

.. math::
    F = \frac{\sum_c \sum_b n_b\,(\bar m_b - \bar m)^2 / (B - 1)}
             {\sum_c \sum_{bi} (m_{bi} - \bar m_b)^2 / (N - B)},

which is 1 on average for a shuffled stream. Channels go together, so the degrees of freedom are not
C times those of one channel but Box's :math:`\nu = C^2 / \lVert R \rVert_F^2` times, for the
correlation matrix R within batches (Box 1954, theorem 3.1). That holds for the first layer, whose
input does not depend on the batch; deeper in the network batch statistics have made the batches
more alike, so that tests there give fewer false alarms, not more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ALPHA", "GROUP", "LAYERS", "LOOKS", "SHARE", "Order", "OrderWatch"]

ALPHA = 0.01
"""Probability that a shuffled stream is said to be ordered, over all layers and looks together."""

LOOKS = tuple(4 * 2**k for k in range(13))
"""Numbers of groups at which the test is made: a long stream may begin with a single label. The
first look may use half of the probability above, each later one half of the one before it. After
the last one no more is looked at."""

GROUP = 8
"""Fewest samples of a group; smaller batches are joined with those that follow."""

SHARE = 0.05
"""Least share of the variance between batches that is worth a warning."""

CHANNELS = 16
"""Channels that are looked at, at most twice as many in layers of more."""

LAYERS = 7
"""Layers that are looked at beside the one that runs first, of a model that has more."""


class Order(NamedTuple):
    """Spread of batch means against what a shuffled stream would give.

    Attributes:
        ratio: F; 1 on average for a shuffled stream.
        share: share of the variance between batches, (F − 1) / (F − 1 + n) for n samples each.
        probability: that of an F as large or larger in a shuffled stream, over all layers and
            looks.
        groups: batches compared.
    """

    ratio: float
    share: float
    probability: float
    groups: int

    @property
    def ordered(self) -> bool:
        """True if chance does not explain the spread, and it is large enough to matter."""
        return self.probability < ALPHA and self.share > SHARE


class OrderWatch:
    """Compare the batches that one layer normalizes, as they come."""

    def __init__(self) -> None:
        self.open = True
        self._pending: list[Tensor] = []
        self._groups = 0
        self._first: Tensor | None = None
        # Of groups: samples, their squares; of channels: sums about the first mean, and squares.
        self._sizes = self._squares = 0.0
        self._sum = self._between = self._within = torch.zeros(0, device="cpu")

    def add(self, values: Tensor, tests: int) -> Order | None:
        """Take a batch, (N, C, \\*); return a result at each look, else None.

        Args:
            values: what the layer normalizes.
            tests: layers that are tested, by which the probability is multiplied.
        """
        step = max(1, values.shape[1] // CHANNELS)
        chosen = values.detach()[:, ::step].float()
        if values.dim() > 2:
            deviations, means = torch.std_mean(chosen.flatten(2), dim=2, correction=0)
            chosen = torch.cat([means, deviations], 1)
        # Of this size no accelerator is faster; Apple's have no float64.
        self._pending.append(chosen.cpu().double())
        if sum(map(len, self._pending)) < GROUP:
            return None
        group = torch.cat(self._pending)
        self._pending = []
        if not bool(group.isfinite().all()):
            return None
        centre = group.mean(0)
        off = group - centre
        if self._first is None:
            self._first = centre
            self._sum, self._between = torch.zeros_like(centre), torch.zeros_like(centre)
            self._within = torch.zeros_like(off.T @ off)
        size = len(group)
        offset = centre - self._first
        self._groups, self._sizes = self._groups + 1, self._sizes + size
        self._squares += size**2
        self._sum, self._between = self._sum + size * offset, self._between + size * offset.square()
        self._within = self._within + off.T @ off
        if self._groups not in LOOKS:
            return None
        self.open = self._groups < LOOKS[-1]
        return self._look(tests * 2 ** (LOOKS.index(self._groups) + 1))

    def close(self) -> None:
        """Stop, and forget what was seen."""
        self.open, self._pending = False, []

    def _look(self, tests: int) -> Order | None:
        assert self._first is not None
        count, groups, offset = self._sizes, self._groups, self._sum / self._sizes
        between = (self._between - count * offset.square()).clamp_min(0)
        within, grand = self._within.diagonal(), self._first + offset
        # A channel that is constant within batches tells nothing, nor does a rounding error.
        used = within > 1e-10 * (within + between).clamp_min(1e-300)
        used &= within > 1e-12 * (count * grand.square())
        if not bool(used.any()):
            return None
        scale = within[used].rsqrt()
        correlation = self._within[used][:, used] * scale[:, None] * scale
        channels = int(used.sum())
        independent = channels**2 / float(correlation.square().sum())
        freedom = groups - 1, count - groups
        mean_ratio = float((between[used] / within[used]).mean())
        ratio = mean_ratio * freedom[1] / freedom[0]
        excess = max(ratio - 1, 0.0)
        size = (count - self._squares / count) / (groups - 1)
        single = f_tail(ratio, freedom[0] * independent, freedom[1] * independent)
        return Order(ratio, excess / (excess + size), min(1.0, tests * single), groups)


def f_tail(ratio: float, above: float, below: float) -> float:
    """Return the probability of a larger F with these degrees of freedom, by Paulson's formula.

    Within a tenth where it is above .001, and 0.65 to 1.8 of itself where it is above 1e-5, for
    ``above`` of at least 3 and ``below`` of at least 28.

    >>> round(f_tail(2.5, 9, 90), 4)
    0.0134
    """
    root = ratio ** (1 / 3)
    a, b = 2 / (9 * above), 2 / (9 * below)
    z = ((1 - b) * root - (1 - a)) / math.sqrt(b * root**2 + a)
    return 0.5 * math.erfc(z / math.sqrt(2))
