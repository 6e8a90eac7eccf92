"""Fused C++ kernels: a layer's tensors in, its output and graph out.

:func:`layer` is a whole eager forward pass in one call, since on a small input each step in Python
costs as much as the kernel. :class:`FusedCPU` is the way for everything else that the kernels take.

Like PyTorch's own kernels they bring their node of the autograd graph with them, since one written
in Python costs more than a whole small layer. Derivatives of the backward come from
:mod:`normkit.core.formula`, as for every other way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import torch
from torch import Tensor

from normkit.core import formula
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import Pool, as_ncs
from normkit.kernels import cpu, outputs
from normkit.kernels.call import Call, FixedStats, Normalized, dense, is_dense
from normkit.kernels.outputs import listening, offer

__all__ = [
    "AVERAGES",
    "FLOATS",
    "POOLS",
    "FusedCPU",
    "Stats",
    "act_numbers",
    "differentiable",
    "layer",
    "signature",
]

# In the order of the extension; tests/kernels/test_table.py compares them.
POOLS = {"batch": 0, "ghost": 1, "group": 2, "position": 3}
AVERAGES = {"exponential": 0, "cumulative": 1, "debiased": 2}
_ACTS = {"silu": 1, "gelu": 2, "relu6": 3}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Stats:
    """Use of a layer's running statistics in a call of :func:`layer`.

    In the order of the extension. Plain integers, which cost less to pass than an enumeration.
    """

    NONE: Final = 0
    """None: the layer normalizes with the moments of its input and keeps none."""
    UPDATE: Final = 1
    """The call updates them with the moments of its input."""
    FIXED: Final = 2
    """The call normalizes with them."""


def signature(
    over: Literal["batch", "ghost", "group", "position"],
    ranks: Iterable[int],
    centred: bool = True,
    rows: bool = False,
) -> int:
    """Encode for :func:`layer` what all layers of a class have in common.

    Args:
        ranks: how many axes an input may have, up to 32.
        rows: an input is rows of values, whatever its axes are, and not (N, C, \\*).

    >>> bin(signature("group", ranks=(2, 4)))
    '0b101000110'
    """
    return POOLS[over] + 4 * centred + 8 * rows + 16 * sum(1 << rank for rank in ranks)


def layer(
    x: Tensor,
    residual: Tensor | None,
    parameters: dict[str, Any],
    buffers: dict[str, Any] | None,
    signature: int,
    groups: int | None,
    shape: int | tuple[int, ...] | None,
    eps: float | None,
    act: Act | None,
    stats: int = Stats.NONE,
    momentum: float | None = None,
    stats_updated: bool = False,
    average: str = "exponential",
) -> Tensor | None:
    """Compute the whole forward pass of a layer, or return None where anything is unusual.

    Nothing has been modified in that case; the caller takes the slow path, which raises the proper
    errors. Not to be called while compiling.

    Args:
        parameters, buffers: where a layer keeps ``weight`` and ``bias``, and ``running_mean``,
            ``running_var`` and ``num_batches_tracked``.
        groups: number of groups, or of parts of a batch; None for one for each channel.
        shape: the last axes, which make a row; without rows how many channels the input must
            have, or None if the parameters alone decide.
        eps: None for the machine epsilon (RMS normalization only).
        stats: one of :class:`Stats`.
        momentum, average: with :attr:`Stats.UPDATE`, as the layer's.
        stats_updated: with :attr:`Stats.UPDATE`, whether the layer has updated its buffers before;
            if so, a call inside a backward pass does not update them.
    """
    if cpu.fused is None:
        return None
    if outputs.ever and listening.listener is not None and not _reads_as_it_is(x):
        return None
    y: Tensor | None = cpu.fused.layer(
        x, residual, parameters, buffers, signature, groups, shape, eps,
        0 if act is None else _ACTS.get(act.name, 0), 1.0 if act is None else act.slope,
        stats, momentum, stats_updated, AVERAGES[average],
    )  # fmt: skip
    if outputs.ever and y is not None and listening.listener is not None:
        bias = parameters.get("bias") if signature & 4 else None  # without centring there is none
        _offer(y, x, parameters["weight"], bias, residual)
    return y


def _reads_as_it_is(x: Any) -> bool:
    """Return False if the kernel would read a copy, which what computes it again has to keep."""
    return type(x) is not Tensor or (not x.is_nested and is_dense(x))


def act_numbers(act: Act | None) -> tuple[int, float]:
    """Return ``act`` as the extension takes it: its number, and the slope below zero."""
    return (0, 1.0) if act is None else (_ACTS.get(act.name, 0), act.slope)


class FusedCPU:
    """Take dense CPU tensors of any pool, layout and floating type."""

    name = "fused C++ kernels"

    def refuses(self, call: Call) -> str | None:
        if cpu.fused is None:
            cpu.check_setting()
        if call.group is not None:
            return "the moments span several processes"
        if not call.x.is_cpu:
            return f"they run on a CPU and the input is on {call.x.device}"
        if cpu.fused is None:
            cpu.warn_once()
            return cpu.why_not()
        refusal: str | None = cpu.fused.refuses(*_arguments(call, call.x))
        return refusal

    def run(self, call: Call) -> Normalized:
        assert cpu.fused is not None
        x = dense(call.x)
        result: Any = cpu.fused.normalize(*_arguments(call, x))
        assert result is not None, "the extension refuses a call that it said it would take"
        count = call.spec.pool.count(*as_ncs(x))
        # With moments where they were asked for, or too large to be averaged in the same go.
        y, mean, var = result if isinstance(result, tuple) else (result, None, None)
        if listening.listener is not None:
            _offer(y, x, call.weight, call.bias, call.residual)
        return Normalized(y, mean, var, count)


def _offer(
    y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    """Offer an output of the kernels to be computed again, with the moments that its node keeps."""
    assert cpu.fused is not None
    again, facts = cpu.fused.again, cpu.fused.kept(y)
    if facts is not None:
        offer(y, x, weight, bias, residual, lambda *tensors: again(*tensors, *facts))


def _arguments(call: Call, x: Tensor) -> tuple[Any, ...]:
    """Return the arguments of the extension's ``refuses`` and ``normalize``."""
    pool, act, stats = call.spec.pool, call.spec.act, call.stats
    mean = var = running_mean = running_var = None
    share = 0.0
    if isinstance(stats, FixedStats):
        mean, var = stats
    elif stats.update is not None:
        running_mean, running_var, share = stats.update
    return (
        x, call.weight, call.bias, call.residual, mean, var, POOLS[pool.over], pool.groups,
        call.spec.eps, *act_numbers(act), call.spec.centred, running_mean, running_var, share,
        call.wants_moments and mean is None and running_mean is None,
    )  # fmt: skip


def differentiable(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: Tensor,
    batch_stats: bool,
    needs: tuple[bool, bool, bool, bool],
    options: tuple[int, int, float, int, float, bool, int],
) -> list[Tensor | None]:
    """Compute the gradients as a function that autograd can differentiate again.

    Also for incoming gradients that the kernels cannot read, such as batched ones.
    """
    over, groups, eps, act, slope, centred, row = options
    names: dict[int, Any] = {number: name for name, number in POOLS.items()}
    acts = {number: Act(name) for name, number in _ACTS.items()}
    pool = Pool(names[over], groups)
    activation = acts.get(act, Act("leaky_relu", slope))
    spec = Spec(pool, eps, None if act == 0 and slope == 1 else activation, centred)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Where an input is rows, whatever its axes are, they are taken as (N, C).
        shape = (-1, row) if row else x.shape
        fixed = None
        if not batch_stats:
            per_pool = pool.stats(*as_ncs(x))
            fixed = stats[0].reshape(per_pool), stats[2].reshape(per_pool)
        if needs[2] and bias is not None and not bias.requires_grad:
            bias = bias.detach().requires_grad_()  # saved for its shape alone
        flat_y = None if y is None else y.reshape(shape)
        inputs = (x.reshape(shape), weight, bias, residual)
        grads = formula.gradients(inputs, flat_y, fixed, dy.reshape(shape), needs, spec, again)
    return [None if g is None else g.reshape(x.shape) if i in (0, 3) else g
            for i, g in enumerate(grads)]  # fmt: skip


if cpu.fused is not None:
    cpu.fused.set_differentiable(differentiable)
