"""Terms of one value, and of a program's tiles, that runs and columns have in common."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from normkit.kernels.triton.elements import activate, activation_gradient, load, moments_about

__all__ = ["ANY", "coefficients", "dz_of", "multiple", "parameter", "span", "store_moments", "y_of"]

ANY = ["pools", "units", "inner", "outer", "step", "rows", "splits", "walk", "blocks", "channels",
       "members", "groups", "spread", "total", "parts", "cols", "width", "rows_of_part",
       "pools_of_part"]  # fmt: skip
"""Arguments of which Triton is not to compile a variant where they are 1 or divisible by 16."""


@triton.jit
def multiple(size, ALIGN: tl.constexpr):
    """Return ``size``, for the compiler to see that it is a multiple of ``ALIGN``."""
    return size // ALIGN * ALIGN


@triton.jit
def span(start, size, BLOCK: tl.constexpr):
    """Return the offsets of a block that begins at ``start``, its mask, and how many are inside.

    Positions have 64 bits and are added once for a block; comparisons have 32.
    """
    here = tl.arange(0, BLOCK)
    inside = tl.maximum(tl.minimum(size - start, BLOCK), 0).to(tl.int32)
    return start + here, here < inside, inside


@triton.jit
def parameter(pointer, index, mask, DEFAULT: tl.constexpr):
    """Load γ or β in float32, or return ``DEFAULT`` where there is none."""
    if pointer is None:
        value = tl.full(index.shape, DEFAULT, tl.float32)
    else:
        value = load(pointer + index, mask)
    return value


@triton.jit
def coefficients(stats, weight, bias, pool, channel, pools, mask):
    """Load mean, what rounding took from it, γ/√(σ² + ε) and β."""
    mean = load(stats + pool, mask)
    low = load(stats + pools + pool, mask)
    rstd = load(stats + 2 * pools + pool, mask)
    scale = rstd * parameter(weight, channel, mask, 1.0)
    return mean, low, scale, parameter(bias, channel, mask, 0.0)


@triton.jit
def y_of(d, scale, shift, residual, at, mask, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """Return y, where ``d`` is x − μ."""
    z = d * scale + shift
    if residual is not None:
        z += load(residual + at, mask)
    if ACT != 0 or SLOPE != 1.0:
        z = activate(z, ACT, SLOPE)
    return z


@triton.jit
def dz_of(
    dy, d, scale, shift, other, at, mask, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
):  # fmt: skip
    """Return dz, where ``d`` is x − μ and ``other`` the residual, the output or None."""
    dz = load(dy + at, mask)
    if ACT != 0 or SLOPE != 1.0:
        if FROM_OUTPUT:
            z = load(other + at, mask)
        else:
            z = d * scale + shift
            if other is not None:
                z += load(other + at, mask)
        dz = activation_gradient(dz, z, ACT, SLOPE)
    return dz


@triton.jit
def store_moments(partials, total, count, pivot, d, dd, mask):
    """Store count, mean, low and m2 of values whose sums about ``pivot`` are ``d`` and ``dd``."""
    mean, low, m2 = moments_about(pivot, count, d, dd)
    tl.store(partials, count * 1.0, mask)
    tl.store(partials + total, mean, mask)
    tl.store(partials + 2 * total, low, mask)
    tl.store(partials + 3 * total, m2, mask)
