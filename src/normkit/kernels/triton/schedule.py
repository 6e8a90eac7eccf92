"""Choice of the kernels for a pool and memory format, and preparation of their tensors.

===========================  =================  ====================================
pool                         contiguous         channels-last
===========================  =================  ====================================
batch, ghost batch, group    ``runs``           ``columns``
batch with little space      ``columns``        ``columns``
group without space          ``rows``           ``rows``
position                     ``rows``           ``rows``
===========================  =================  ====================================

``longrows`` takes the place of ``rows`` where a pool does not fit into one tile; ``whole`` that of
``runs`` where groups are many and fit into one tile.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.core.pools import as_ncs
from normkit.kernels.call import Running, dense, layout
from normkit.kernels.triton import columns, longrows, rows, runs, whole
from normkit.kernels.triton.elements import load, reciprocal_deviation
from normkit.kernels.triton.geometry import in_columns
from normkit.kernels.triton.problem import Problem, launch_options

__all__ = ["backward", "fixed_stats", "forward", "moments"]


def kernels_for(x: Tensor, problem: Problem, backward: bool = False, fixed: bool = False) -> Any:
    """Return the module whose kernels take dense ``x``."""
    if problem.over == "position" or (problem.over == "group" and as_ncs(x)[2] == 1):
        fits = rows.fits_backward if backward else rows.fits_forward
        return rows if fits(x, problem) else longrows
    if in_columns(x, problem):
        return columns
    whole_fits = whole.fits_backward if backward else whole.fits_forward
    return whole if problem.over == "group" and not fixed and whole_fits(x, problem) else runs


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Return stats (4, pools): mean, what rounding took from it, 1/√(σ² + ε), biased variance."""
    x = dense(x)
    with _on(x):
        stats: Tensor = kernels_for(x, problem).moments(x, problem)
    return stats


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    problem: Problem,
    fixed: Tensor | None = None,
    update: Running | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the stats (4, pools).

    Args:
        x: input (N, C, \\*), not empty.
        weight, bias: γ and β, C elements each, or None.
        residual: added before the activation; shape and type of ``x``.
        fixed: stats to normalize with, such as :func:`fixed_stats` returns.
        update: running mean and variance of a pool over the batch, and the share to move them by.
    """
    x = dense(x)
    options = () if update is None else (update,)
    with _on(x):
        y, stats = kernels_for(x, problem, fixed=fixed is not None).forward(
            x, _flat(weight), _flat(bias), _like(residual, x), problem, fixed, *options
        )
    return y, stats


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    stats: Tensor,
    other_is_output: bool,
    needs: tuple[bool, bool, bool, bool],
    problem: Problem,
    own_stats: bool = True,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias and residual that ``needs`` marks.

    Without an activation that of the residual is ``dy``, and is not to be asked for.

    Args:
        other: the residual, or the output where ``other_is_output``; None without an activation.
        own_stats: the stats are those of ``x``, so that they have a gradient.
    """
    x = dense(x)
    needed = (needs[0], needs[1] and weight is not None, needs[2] and bias is not None, needs[3])
    with _on(x):
        kernels = kernels_for(x, problem, backward=True, fixed=not own_stats)
        dx, dweight, dbias, dresidual = kernels.backward(
            _like(dy, x), x, _flat(weight), _flat(bias), _like(other, x), stats, other_is_output,
            needed, problem, own_stats,
        )  # fmt: skip
    return dx, _shaped(dweight, weight), _shaped(dbias, bias), dresidual


@triton.jit
def _fixed(mean, var, stats, pools, eps, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = i < pools
    variance = load(var + i, here)
    tl.store(stats + i, load(mean + i, here), here)
    tl.store(stats + pools + i, tl.zeros([SIZE], tl.float32), here)
    tl.store(stats + 2 * pools + i, reciprocal_deviation(variance, eps), here)
    tl.store(stats + 3 * pools + i, variance, here)


def fixed_stats(mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Return stats (4, pools) of moments that are constants, one of each for each pool."""
    stats = mean.new_empty((4, mean.numel()), dtype=torch.float32)
    with _on(mean):
        _fixed[(triton.cdiv(mean.numel(), 256),)](
            _flat(mean), _flat(var), stats, mean.numel(), eps, SIZE=256, **launch_options(1)
        )
    return stats


def _on(x: Tensor) -> Any:
    """Make the device of ``x`` the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _like(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Return ``t`` in the type and memory format of ``x``."""
    return None if t is None else t.to(x.dtype).contiguous(memory_format=layout(x))


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().reshape(-1).contiguous()


def _shaped(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    if gradient is None or parameter is None:
        return None
    return gradient.to(parameter.dtype).reshape(parameter.shape)
