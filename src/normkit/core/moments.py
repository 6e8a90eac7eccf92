r"""Count, mean and sum of squared deviations: how statistics travel and merge.

Two sets of values with :math:`(n_a, \mu_a, M_a)` and :math:`(n_b, \mu_b, M_b)`, where
:math:`M = \sum (x - \mu)^2`, merge exactly into

.. math::
    n = n_a + n_b, \quad
    \mu = \mu_a + (\mu_b - \mu_a)\,\frac{n_b}{n}, \quad
    M = M_a + M_b + (\mu_b - \mu_a)^2\,\frac{n_a n_b}{n}

(Chan, Golub & LeVeque 1979, *Updating formulae and a pairwise algorithm for computing sample
variances*). E[x²] − E[x]² is never formed: in float32 it loses everything once the mean is a few
thousand deviations from zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from normkit.errors import StatisticsError, message

__all__ = ["Moments", "accumulator", "merge", "merge_rows"]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over values of type ``dtype`` are kept.

    >>> accumulator(torch.bfloat16), accumulator(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a set of values, one entry per pool.

    Args:
        count: number of values, shape ``()`` or as ``mean``.
        mean: their mean.
        m2: the sum of their squared deviations from it, in squared units of the values.

    >>> Moments.of(torch.tensor([[1.0], [3.0]]), dim=0).variance
    tensor([1.])
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor, dim: int | tuple[int, ...]) -> Moments:
        """Compute moments of ``x`` along ``dim``, in float32 or wider, in two passes."""
        dims = (dim,) if isinstance(dim, int) else dim
        count = 1
        for d in dims:
            count *= x.shape[d]
        x = x.to(accumulator(x.dtype))
        if count == 0:
            zeros = x.sum(dims)
            return cls(torch.zeros((), dtype=torch.float64, device=x.device), zeros, zeros)
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        # The mean itself is rounded; what is left of it after centring is exact enough to
        # correct both moments. Subtracted before squaring: the difference of two squares would be
        # rounding alone where the values hardly differ.
        rest = centred.mean(dims, keepdim=True)
        m2 = (centred - rest).square().sum(dims)
        total = torch.full((), float(count), dtype=torch.float64, device=x.device)
        return cls(total, (mean + rest).squeeze(dims), m2)

    @property
    def variance(self) -> Tensor:
        """Biased variance ``m2 / n``, the one to normalize with."""
        return (self.m2 / self.count).to(self.m2.dtype)

    @property
    def unbiased(self) -> Tensor:
        """Unbiased variance ``m2 / (n − 1)``, the one to average. NaN for a single value."""
        return (self.m2 / (self.count - 1)).to(self.m2.dtype)


def merge(parts: Sequence[Moments]) -> Moments:
    """Merge moments of disjoint sets into those of their union, exactly.

    Empty parts have no effect. The result does not depend on the number of parts that the
    values were split into, beyond rounding.

    Raises:
        StatisticsError: ``parts`` is empty.

    >>> a, b = (Moments.of(torch.tensor(v), dim=0) for v in ([1.0, 2.0, 3.0], [10.0]))
    >>> merge([a, b]).mean, merge([a, b]).m2
    (tensor(4.), tensor(50.))
    """
    if not parts:
        raise StatisticsError(
            message(
                "at least one set of moments to merge",
                "none",
                "pass the moments of every part, including empty ones",
            )
        )
    counts = torch.stack([torch.broadcast_to(p.count, p.mean.shape) for p in parts])
    merged = merge_rows(
        counts, torch.stack([p.mean for p in parts]), torch.stack([p.m2 for p in parts])
    )
    # The count keeps its shape.
    return dataclasses.replace(merged, count=torch.stack([p.count for p in parts]).double().sum(0))


def merge_rows(counts: Tensor, means: Tensor, m2s: Tensor) -> Moments:
    """:func:`merge` for parts that lie in the rows of three tensors of one shape ``(P, ...)``."""
    dtype = means.dtype
    counts, means, m2s = counts.double(), means.double(), m2s.double()
    total = counts.sum(0)
    # Means are taken relative to that of the largest part, so that a common offset costs no
    # digits.
    origin = means.gather(0, counts.argmax(0, keepdim=True))
    offsets = means - origin
    # Counts may be weights of less than one.
    offset = (counts * offsets).sum(0) / torch.where(total > 0, total, 1.0)
    m2 = m2s.sum(0) + (counts * (offsets - offset).square()).sum(0)
    return Moments(total, (origin[0] + offset).to(dtype), m2.to(dtype))
