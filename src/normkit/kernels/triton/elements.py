"""Arithmetic that all kernels share: loads, activations, and moments that merge.

Moments travel as ``(count, mean, low, m2)`` in float32: the mean is ``mean + low``, where ``low``
is what rounding took from it, and ``m2`` is the sum of squared deviations from it. A mean of 10⁴
with a deviation of 0.1 has lost half a percent of a deviation without ``low``.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Parameters of kernels have no types but that of a constant, which Triton reads.

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

__all__ = [
    "activate",
    "activation_gradient",
    "load",
    "merge",
    "merge_along",
    "moments_about",
    "moments_along",
    "reciprocal_deviation",
    "rstd_of",
    "store_stats",
]


@triton.jit
def load(pointers, mask):
    """Load in float32; zero where ``mask`` is False."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """Apply the activation numbered as in ``Problem.act``; ``SLOPE`` is that of number 0."""
    if ACT == 1:
        y = z * tl.sigmoid(z)
    elif ACT == 2:
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == 3:
        # By comparisons, which let NaN through.
        y = tl.where(z < 0.0, 0.0, tl.where(z > 6.0, 6.0, z))
    elif SLOPE == 0.0:
        # No product, which would be NaN for an infinite value.
        y = tl.where(z < 0.0, 0.0, z)
    else:
        y = tl.where(z < 0.0, z * SLOPE, z)
    return y


@triton.jit
def activation_gradient(dy, z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """Return act′(z)·dy. For activations 0 and 3, ``z`` may be the output."""
    if ACT == 1:
        s = tl.sigmoid(z)
        dz = dy * (s * (1.0 + z * (1.0 - s)))
    elif ACT == 2:
        cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        dz = dy * (cdf + z * tl.exp(-0.5 * z * z) * 0.3989422804014327)
    elif ACT == 3:
        # Zero by comparisons, which let NaN through.
        dz = tl.where((z <= 0.0) | (z >= 6.0), 0.0, dy)
    elif SLOPE == 0.0:
        # As PyTorch: of NaN, ReLU passes the gradient on, and a slope multiplies it.
        dz = tl.where(z <= 0.0, 0.0, dy)
    else:
        dz = tl.where(z > 0.0, dy, dy * SLOPE)
    return dz


@triton.jit
def reciprocal_deviation(var, eps):
    """Return 1/√(σ² + ε), rounded once for each operation."""
    return tl.math.div_rn(tl.full(var.shape, 1.0, tl.float32), tl.sqrt_rn(var + eps))


@triton.jit
def rstd_of(var, eps):
    """Return 1/√(σ² + ε) of computed moments; NaN where the squares exceed float32.

    Zero would pass for a result: outputs would be β alone.
    """
    return tl.where(var == float("inf"), float("nan"), reciprocal_deviation(var, eps))


@triton.jit
def store_stats(stats, pools, pool, mean, low, m2, size, eps, mask):
    """Store the stats of pools of ``size`` values from their moments; return 1/√(σ² + ε)."""
    var = m2 / size
    rstd = rstd_of(var, eps)
    tl.store(stats + pool, mean, mask)
    tl.store(stats + pools + pool, low, mask)
    tl.store(stats + 2 * pools + pool, rstd, mask)
    tl.store(stats + 3 * pools + pool, var, mask)
    return rstd


@triton.jit
def moments_about(pivot, count, d, dd):
    """Return mean, low and m2 of ``count`` values, whose sums about ``pivot`` are ``d`` and ``dd``.

    Loses 2⁻²⁴·(μ − pivot)² of the variance, as one term of m2 is taken from the other, and as much
    again for each addition that the sums are made of one after the other.
    """
    rest = d / count
    mean = pivot + rest
    m2 = dd - rest * d
    # By a comparison, which lets NaN through.
    return mean, rest - (mean - pivot), tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def moments_along(x, mask, count, axis: tl.constexpr, CENTRED: tl.constexpr):
    """Return mean, low and m2 of a tile along ``axis``, which stays as size one, and x − μ.

    Args:
        x: float32, zero where ``mask`` is False.
        count: how many of them ``mask`` lets through: a number, or as the result; 0 where none.
        CENTRED: False for moments about zero.
    """
    n = tl.maximum(count, 1) * 1.0
    if CENTRED:
        mean = tl.sum(x, axis, keep_dims=True) / n
        d = tl.where(mask, x - mean, 0.0)
        low = tl.sum(d, axis, keep_dims=True) / n
        d = tl.where(mask, d - low, 0.0)
        m2 = tl.sum(d * d, axis, keep_dims=True)
    else:
        d = x
        m2 = tl.sum(d * d, axis, keep_dims=True)
        mean = m2 * 0.0
        low = mean
    return mean, low, m2, d


@triton.jit
def merge(count_a, mean_a, low_a, m2_a, count_b, mean_b, low_b, m2_b):
    """Merge the moments of two disjoint sets of values (Chan); usable in ``tl.reduce``."""
    count = count_a + count_b
    share = tl.where(count > 0, count_b / tl.maximum(count, 1), 0.0)
    # An empty set's mean would be an origin far from all values.
    mean_a = tl.where(count_a > 0, mean_a, mean_b)
    low_a = tl.where(count_a > 0, low_a, low_b)
    delta = (mean_b - mean_a) + (low_b - low_a)
    m2 = m2_a + m2_b + delta * delta * (count_a * share)
    rest = low_a + delta * share
    mean = mean_a + rest
    return count, mean, rest - (mean - mean_a), m2


@triton.jit
def merge_along(count, mean, low, m2, axis: tl.constexpr):
    """Merge the moments of the sets that lie along ``axis``, which stays as size one.

    Empty sets need finite moments. In sums alone, which cost less than pairs in a tree.
    """
    total = tl.sum(count, axis, keep_dims=True)
    n = tl.maximum(total, 1) * 1.0
    origin = tl.sum(count * mean, axis, keep_dims=True) / n
    offset = (mean - origin) + low
    rest = tl.sum(count * offset, axis, keep_dims=True) / n
    d = offset - rest
    m2 = tl.sum(m2 + count * (d * d), axis, keep_dims=True)
    mean = origin + rest
    return total, mean, rest - (mean - origin), m2
