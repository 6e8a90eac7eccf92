"""Register the kernels as operations that a compiled graph keeps, such as ``normkit::normalize``.

The extension brings what they compute on a CPU (``cpu/torch_operations.h``),
:mod:`normkit.kernels.triton.operations` on a GPU; here are the schemas, what a compiler has to know
of the results, and the gradients. The operations are functional, so running
statistics are averaged by operations around them, which the compiler fuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import Pool, as_ncs
from normkit.kernels import fused, node
from normkit.kernels.call import dense
from normkit.kernels.node import Constants, Options
from normkit.kernels.triton import operations as on_gpu

__all__ = ["available", "normalize", "options_of"]

# Pool and activation by their numbers in the extension; linear with a slope of 1 is no activation.
_OPTIONS = "int pool, SymInt groups, float eps, int act, float slope, bool centred"
# The kernels read both memory formats, so a compiler need not copy for the one that it has seen.
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)

_library = torch.library.Library("normkit", "DEF")
_INPUTS = "Tensor x, Tensor? weight, Tensor? bias, Tensor? residual"
for _name in ("normalize", "normalize_traced"):
    _library.define(f"{_name}({_INPUTS}, {_OPTIONS}) -> (Tensor y, Tensor stats)")
_library.define(f"normalize_forward({_INPUTS}, {_OPTIONS}) -> (Tensor y, Tensor stats)", tags=_TAGS)
_library.define(
    "normalize_moments(Tensor x, int pool, SymInt groups, float eps) -> Tensor stats", tags=_TAGS
)
_library.define(
    "normalize_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? other, "
    f"Tensor stats, bool other_is_output, int needs, {_OPTIONS})"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)",
    tags=_TAGS,
)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Normalize ``x`` by its own moments; return the output and the moments.

    These are (4, pools): mean, what rounding took from it, 1/√(σ² + ε), biased variance.
    """
    operations = torch.ops.normkit
    # The first is in the extension, which has a node for tensors of a CPU.
    operation = operations.normalize if x.device.type == "cpu" else operations.normalize_traced
    y, stats = operation(x, weight, bias, residual, *options_of(spec))
    return y, stats


def options_of(spec: Spec) -> Options:
    """Return ``spec`` as the operations take it."""
    act, slope = fused.act_numbers(spec.act)
    pool = spec.pool
    return fused.POOLS[pool.over], pool.groups, spec.eps, act, slope, spec.centred


def _fake_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pool: int,
    groups: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dense(x)), _fake_moments(x, pool, groups)


def _fake_moments(x: Tensor, pool: int, groups: int, _: float = 0.0) -> Tensor:
    over: Any = next(name for name, number in fused.POOLS.items() if number == pool)
    a, b, c, d = Pool(over, groups).stats(*as_ncs(x))
    return x.new_empty((4, a * b * c * d), dtype=accumulator(x.dtype))


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    stats: Tensor,
    other_is_output: bool,
    needs: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    like = dense(x)
    return tuple(
        torch.empty_like(t, memory_format=layout)
        if t is not None and needs >> i & 1
        else x.new_empty(0)
        for i, (t, layout) in enumerate(
            [
                (like, torch.preserve_format), (weight, torch.contiguous_format),
                (bias, torch.contiguous_format), (like, torch.preserve_format),
            ]
        )
    )  # fmt: skip


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Compute by one operation, or by the moments and what a compiler fuses.

    The second where no activation is known: one may follow, and an addition, and these would be
    passes of their own. It has moments about the mean, which layers without centring do not take.
    Rows are in the nearest cache when they are normalized; a compiler would
    read them from memory once more.
    """
    pool, groups, eps, act, slope, centred = options
    channels = pool == fused.POOLS["batch"] or (pool == fused.POOLS["group"] and x.dim() > 2)
    if not channels or not centred or act != 0 or slope != 1:
        y, stats = torch.ops.normkit.normalize_forward(x, weight, bias, residual, *options)
        return y, stats
    stats = torch.ops.normkit.normalize_moments(x, pool, groups, eps)
    # A row per sample and channel, so that the output is no view: what follows may write to it.
    acc, ones, (n, c) = stats.dtype, (1,) * (x.dim() - 2), x.shape[:2]
    if pool == fused.POOLS["group"]:
        stats_of = stats.reshape(4, n, groups, 1).expand(4, n, groups, c // groups)
        rows = stats_of.reshape(4, n, c, *ones)
    else:
        rows = stats.reshape(4, 1, c, *ones)
    mean, rounding, rstd, _ = rows.unbind()
    per_channel = (1, c, *ones)
    scale = rstd if weight is None else rstd * weight.to(acc).reshape(per_channel)
    # The mean of values far from zero is rounded by more than the output may be.
    z = ((x.to(acc) - mean) - rounding) * scale
    if bias is not None:
        z = z + bias.to(acc).reshape(per_channel)
    if residual is not None:
        z = z + residual.to(acc)
    return z.to(x.dtype), stats


class _Operations:
    """Engine of the graph: both passes as operations that a compiler keeps."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: Constants,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        return _forward(x, weight, bias, residual, *options)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        stats: Tensor,
        other_is_output: bool,
        needs: tuple[bool, bool, bool, bool],
        own_stats: bool,
        options: Options,
    ) -> tuple[Tensor | None, ...]:
        marked = sum(need << i for i, need in enumerate(needs))
        results: tuple[Tensor, ...] = torch.ops.normkit.normalize_backward(
            dy, x, weight, bias, other, stats, other_is_output, marked, *options
        )
        return results


_OPERATIONS = _Operations()


def _traced(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pool: int,
    groups: int,
    eps: float,
    act: int,
    slope: float,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    options = (pool, groups, eps, act, slope, centred)
    return node.normalize(_OPERATIONS, x, weight, bias, residual, Constants(), options)


# By its parts and not by a gradient registered for it, which lies in Python and would be asked in
# each call of a compiled graph.
_library.impl("normalize_traced", _traced, "CompositeImplicitAutograd")
torch.library.register_fake("normkit::normalize_forward", _fake_forward, lib=_library)
torch.library.register_fake("normkit::normalize_moments", _fake_moments, lib=_library)
torch.library.register_fake("normkit::normalize_backward", _fake_backward, lib=_library)
for _name, _kernel in on_gpu.KERNELS.items():
    _library.impl(_name, _kernel, "CUDA")

available: bool = torch._C._dispatch_has_kernel_for_dispatch_key(
    "normkit::normalize_moments", "CPU"
)
"""Whether the extension brings them for a CPU: there may be none, or an earlier version's."""
