"""The fused C++ kernels: a layer's tensors in, its output and graph out.

They are no :class:`normkit.kernels.contract.Backend`: like PyTorch's own kernels they bring their
node of the autograd graph with them, since one written in Python costs more than a small layer
takes in all. Derivatives of the backward come from :mod:`normkit.core.formula`, as for every other
way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core import formula
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import Pool
from normkit.kernels import cpu
from normkit.kernels.native import Running

__all__ = ["normalize", "refuses"]

# In the order of problem.h.
_OVER = {"batch": 0, "ghost": 1, "group": 2, "position": 3}
_ACTS = {"silu": 1, "gelu": 2}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Result = tuple[Tensor, Tensor | None, Tensor | None]


def refuses(x: Tensor, spec: Spec) -> str | None:
    """Why the kernels cannot take ``x``, to finish 'not used because'; or None if they can."""
    if cpu.fused is None:
        return cpu.reason
    if x.device.type != "cpu":
        return f"they run on a CPU and the input is on {x.device}"
    if x.dtype not in _FLOATS:
        return f"they do not know {x.dtype}"
    if x.numel() == 0:
        return "the input is empty"
    return None


def normalize(
    x: Tensor,
    spec: Spec,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: tuple[Tensor, Tensor] | None,
    running: Running | None,
    moments: bool,
) -> Result | None:
    """Output, mean and biased variance, or None where the kernels do not take the input.

    The moments are None unless ``moments`` asks for them. With ``running`` the kernel moves the
    buffers itself.
    """
    if cpu.fused is None:
        return None
    pool, act = spec.pool, spec.act
    mean, var = (None, None) if stats is None else stats
    running_mean, running_var, share = (None, None, 0.0) if running is None else running
    found: Any = cpu.fused.normalize(
        x, weight, bias, residual, mean, var, _OVER[pool.over], pool.groups, spec.eps,
        0 if act is None else _ACTS.get(act.name, 0), 1.0 if act is None else act.slope,
        spec.centred, running_mean, running_var, share, moments,
    )  # fmt: skip
    if found is None:
        return None
    return found if moments else (found, None, None)


def _differentiable(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: Tensor,
    own: bool,
    needs: tuple[bool, bool, bool, bool],
    options: tuple[int, int, float, int, float, bool],
) -> list[Tensor | None]:
    """The gradients once more, as a function that autograd can differentiate again."""
    over, groups, eps, act, slope, centred = options
    names: dict[int, Any] = {number: name for name, number in _OVER.items()}
    pool = Pool(names[over], groups)
    activation = {1: Act("silu"), 2: Act("gelu")}.get(act, Act("leaky_relu", slope))
    spec = Spec(pool, eps, None if act == 0 and slope == 1 else activation, centred)
    if y is not None and spec.act is not None:
        # The activation is piecewise linear, and y says which piece.
        dy = spec.act.backward_from_output(dy, y.detach())
        spec = Spec(pool, eps, None, centred)
    if own:
        mean, var = formula.stats_of(x, pool, centred)
    else:
        c = x.shape[1]
        shape = pool.stats(x.shape[0], c, x[0, 0].numel())
        mean = stats[0].reshape(shape)
        var = (stats[2].to(accumulator(stats.dtype)).pow(-2) - eps).reshape(shape)
    inputs = [x, weight, bias, residual]
    again = formula.normalize(x, spec, weight, bias, residual, mean, var)
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(again, wanted, dy, create_graph=True) if wanted else ())
    grads: list[Tensor | None] = [
        next(found) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    if needs[3] and residual is None:  # it was not kept, since z is linear in it
        grads[3] = dy
    return grads


if cpu.fused is not None:
    cpu.fused.set_differentiable(_differentiable)
