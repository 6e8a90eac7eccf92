"""Say what computes a layer, and why the faster ways do not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.core.pools import as_ncs
from normkit.kernels import cpu, dispatch
from normkit.kernels.call import Call, Normalized
from normkit.nn.layer import Layer
from normkit.nn.scale import Scale

__all__ = ["explain"]

_SHORT_CUT = "one fused call for the whole layer"


def explain(layer: Layer, input: Tensor, residual: Tensor | None = None) -> list[str]:
    """Return one line for each way considered for ``layer(input, residual)``, the one used last.

    The layer runs its own forward pass on copies of its buffers, so nothing of it changes and no
    process waits for another; what that pass asks the kernels for is explained, not computed.

    >>> from normkit.nn.layernorm import LayerNorm
    >>> explain(LayerNorm(3), torch.ones(0, 3))[-1]
    'portable operations: used'
    """
    calls: list[Call] = []

    def record(call: Call) -> Normalized:
        calls.append(call)
        n, c, s = as_ncs(call.x)
        mean = torch.zeros(call.spec.pool.stats(n, c, s), device=call.x.device)
        y = torch.empty_like(call.x)
        return Normalized(y, mean, torch.ones_like(mean), call.spec.pool.count(n, c, s))

    twin = object.__new__(type(layer))
    buffers = {name: None if b is None else b.clone() for name, b in layer._buffers.items()}
    twin.__dict__ |= layer.__dict__ | {"_buffers": buffers, "_normalize": record}
    with torch.no_grad():
        twin.forward(input, residual)
    if not calls and (input.is_nested or isinstance(layer, Scale)):
        return ["PyTorch's operations: used"]
    if not calls:
        return [f"{_SHORT_CUT}: used"]
    lines = [f"{_SHORT_CUT}: not used because {_why_slow(layer, input)}"]
    for call in calls:
        lines += [line for line in dispatch.explain(call) if line not in lines]
    return lines


def _why_slow(layer: Layer, input: Tensor) -> str:
    if is_compiling():
        return "torch.compile traces the layer"
    if not layer._fast_path_ok:
        return f"{type(layer).__name__} overrides a step of the forward pass"
    if cpu.fused is None:
        return cpu.reason
    if not input.is_cpu:
        return f"the input is on {input.device}"
    return "the layer, its mode or its input is not among those it takes"
