"""Kernels as PyTorch's dispatcher calls them, for :mod:`normkit.kernels.operations`.

The arguments are those of the schemas there. Triton is imported by the first call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normkit.core.pools import as_ncs
from normkit.kernels import fused
from normkit.kernels.call import dense
from normkit.kernels.node import Options
from normkit.kernels.triton.problem import Problem

__all__ = ["KERNELS", "problem_of"]

_OVER: dict[int, Any] = {number: name for name, number in fused.POOLS.items()}


def problem_of(options: Options) -> Problem:
    """Return the options of a schema as the kernels take them."""
    pool, groups, eps, act, slope, centred = options
    return Problem(_OVER[pool], groups, eps, act, slope, centred)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    problem = problem_of(options)
    if x.numel() == 0:
        return torch.empty_like(dense(x)), _moments_of_empty(x, problem)
    from normkit.kernels.triton import schedule

    return schedule.forward(x, weight, bias, residual, problem)


def _moments(x: Tensor, pool: int, groups: int, eps: float) -> Tensor:
    problem = Problem(_OVER[pool], groups, eps)
    if x.numel() == 0:
        return _moments_of_empty(x, problem)
    from normkit.kernels.triton import schedule

    return schedule.moments(x, problem)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    stats: Tensor,
    other_is_output: bool,
    needs: int,
    *options: Any,
) -> tuple[Tensor, ...]:
    a, b, c, d = (bool(needs >> i & 1) for i in range(4))
    if x.numel() == 0:
        like = dense(x)
        results: tuple[Tensor | None, ...] = (
            torch.empty_like(like) if a else None,
            torch.zeros_like(weight) if b and weight is not None else None,
            torch.zeros_like(bias) if c and bias is not None else None,
            torch.empty_like(like) if d else None,
        )
    else:
        from normkit.kernels.triton import schedule

        results = schedule.backward(
            dy, x, weight, bias, other, stats, other_is_output, (a, b, c, d), problem_of(options)
        )
    return tuple(x.new_empty(0) if t is None else t for t in results)


def _moments_of_empty(x: Tensor, problem: Problem) -> Tensor:
    a, b, c, d = problem.pool.stats(*as_ncs(x))
    stats = x.new_zeros((4, a * b * c * d), dtype=torch.float32)
    stats[2].fill_(1 / math.sqrt(problem.eps))
    return stats


KERNELS: dict[str, Callable[..., Any]] = {
    "normalize_forward": _forward,
    "normalize_moments": _moments,
    "normalize_backward": _backward,
}
"""Implementations by the names of the operations."""
