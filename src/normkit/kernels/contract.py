r"""Contract of a forward and backward pair: shapes, types, and what is saved for backward.

Notation: x is seen through ``spec.pool`` as a ``(N, G, K, S)`` view (:mod:`normkit.core.pools`);
μ and σ² have the shape ``pool.stats(N, C, S)``; r = 1/√(σ² + ε); x̂ = (x − μ)·r.

**Forward**: z = γ·x̂ + β + residual; y = act(z).

**Saved for backward**: x, γ, β, residual (only if there is an activation), μ and r. No mask, no
x̂, no z: they are recomputed from what is saved anyway. A pair that cannot recompute cheaply may
ask for y instead (``keeps_output``) where it tells act′: for ReLU and leaky ReLU, whose output the
next layer keeps as its input in any case.

**Backward**, with dz = act′(z)·dy: a first pass over the data sums dz and dz·(x − μ) along the
axes that neither the moments nor γ vary along (``pool.shared_dims``). From these two small
tensors, A and B, everything else follows:

- dβ = ΣA, dγ = Σ r·B over what is left of the axes of γ,
- g₁ = mean over the pool of γ·A, g₂ = mean over the pool of γ·B,
- second pass: dx = r·γ·dz − r·g₁ − r³·g₂·(x − μ),
- d residual = dz.

Where the moments are fixed and not computed from x (evaluation), dx = r·γ·dz.

**Types**: x, residual, y, dy and dx share one floating type; μ and r are float32, or float64 for
float64 input; γ and β are of any floating type; sums are kept in the type of μ.

**Layout**: y and dx have the memory layout of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from normkit.core.formula import Spec

__all__ = ["Forward", "Gradients", "Pair"]


class Forward(NamedTuple):
    """Result of a forward pass: output, mean, biased variance, reciprocal deviation."""

    y: Tensor
    mean: Tensor
    var: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """Result of a backward pass; None where not needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


class Pair(Protocol):
    """Forward and backward of the operations above, on detached tensors.

    :func:`normkit.kernels.autograd.run_pair` gives it a graph.
    """

    keeps_output: bool

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        stats: tuple[Tensor, Tensor] | None,
        spec: Spec,
    ) -> Forward:
        """Normalize ``x`` by ``stats`` (mean, variance), or by its own moments if that is None."""
        ...

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        own_stats: bool,
        needs: tuple[bool, bool, bool, bool],
        spec: Spec,
        reduce: Any = None,
    ) -> Gradients:
        """Return the gradients of x, weight, bias and residual that ``needs`` marks.

        ``y``: the output, where ``keeps_output`` had it saved.
        ``own_stats``: the moments were computed from the values, so they have a gradient.
        ``reduce``: called as ``g1, g2 = reduce(sum_g, sum_gx)`` with the pool's *sums* of γ·dz
        and γ·dz·(x − μ); returns their *means*. Not None where a pool spans processes.
        """
        ...
