"""The fused C++ kernels: a layer's tensors in, its output and graph out.

:func:`layer` is all of a usual forward pass in one call, since on a small input each step that
Python takes costs as much as the kernel. :func:`normalize` is one of the ways that
:mod:`normkit.kernels.autograd` tries for everything else.

They are no :class:`normkit.kernels.contract.Backend`: like PyTorch's own kernels they bring their
node of the autograd graph with them, since one written in Python costs more than a small layer
takes in all. Derivatives of the backward come from :mod:`normkit.core.formula`, as for every other
way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import torch
from torch import Tensor

from normkit.core import formula
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import Pool
from normkit.kernels import cpu
from normkit.kernels.native import Running

__all__ = ["GIVEN", "MOVED", "NONE", "kind", "layer", "normalize", "refuses"]

# In the order of problem.h.
_OVER = {"batch": 0, "ghost": 1, "group": 2, "position": 3}
_ACTS = {"silu": 1, "gelu": 2}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# What of a layer's buffers takes part: nothing, since it has none; moments that this call moves;
# moments to normalize with. In the order of glue.cpp.
NONE: Final = 0
MOVED: Final = 1
GIVEN: Final = 2

Result = tuple[Tensor, Tensor | None, Tensor | None]


def kind(
    over: Literal["batch", "group", "position"],
    ranks: Iterable[int],
    centred: bool = True,
    rows: bool = False,
) -> int:
    """What all layers of a class have in common, as :func:`layer` wants it.

    Args:
        ranks: how many axes an input may have, up to 32.
        rows: an input is rows of values, whatever its axes are, and not (N, C, \\*).

    >>> bin(kind("group", ranks=(2, 4)))
    '0b101000110'
    """
    return _OVER[over] + 4 * centred + 8 * rows + 16 * sum(1 << rank for rank in ranks)


def layer(
    x: Tensor,
    residual: Tensor | None,
    parameters: dict[str, Any],
    buffers: dict[str, Any] | None,
    kind: int,
    groups: int | None,
    shape: int | tuple[int, ...] | None,
    eps: float | None,
    act: Act | None,
    memory: int = NONE,
    momentum: float | None = None,
    counted: bool = False,
) -> Tensor | None:
    """The whole forward pass of a layer, or None where anything at all is not as usual.

    Then nothing has been written, and the layer goes step by step and tells what is wrong. Not to
    be called while compiling.

    Args:
        parameters, buffers: where a layer keeps ``weight`` and ``bias``, and ``running_mean``,
            ``running_var`` and ``num_batches_tracked``.
        groups: None for one for each channel.
        shape: the last axes, which make a row; without rows how many channels the input must
            have, or None if the parameters alone decide.
        eps: None for the machine epsilon (RMS normalization only).
        memory: :data:`NONE`, :data:`MOVED` or :data:`GIVEN`.
        counted: with :data:`MOVED`, whether the layer has moved its buffers before. Then it does
            not within a backward pass.
    """
    if cpu.fused is None:
        return None
    y: Tensor | None = cpu.fused.layer(
        x, residual, parameters, buffers, kind, groups, shape, eps,
        0 if act is None else _ACTS.get(act.name, 0), 1.0 if act is None else act.slope,
        memory, momentum, counted,
    )  # fmt: skip
    return y


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
    options: tuple[int, int, float, int, float, bool, int],
) -> list[Tensor | None]:
    """The gradients once more, as a function that autograd can differentiate again.

    Also for incoming gradients that the kernels cannot read, such as batched ones: it is made of
    PyTorch's operations.
    """
    over, groups, eps, act, slope, centred, row = options
    names: dict[int, Any] = {number: name for name, number in _OVER.items()}
    pool = Pool(names[over], groups)
    activation = {1: Act("silu"), 2: Act("gelu")}.get(act, Act("leaky_relu", slope))
    spec = Spec(pool, eps, None if act == 0 and slope == 1 else activation, centred)
    if y is not None and spec.act is not None:
        # The activation is piecewise linear, and y says which piece.
        dy = spec.act.backward_from_output(dy, y.detach())
        spec = Spec(pool, eps, None, centred)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        flat = x.reshape(-1, row) if row else x
        if own:
            mean, var = formula.stats_of(flat, pool, centred)
        else:
            c = x.shape[1]
            shape = pool.stats(x.shape[0], c, x[0, 0].numel())
            mean = stats[0].reshape(shape)
            var = (stats[2].to(accumulator(stats.dtype)).pow(-2) - eps).reshape(shape)
        if needs[2] and bias is not None and not bias.requires_grad:
            bias = bias.detach().requires_grad_()  # kept for its shape: no gradient reads it
        z = formula.normalize(flat, spec, weight, bias, residual, mean, var).reshape(x.shape)
        return formula.gradients(z, dy, (x, weight, bias, residual), needs, again)


if cpu.fused is not None:
    cpu.fused.set_differentiable(_differentiable)
