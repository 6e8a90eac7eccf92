"""Say what computes a layer, and why the faster ways do not."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy

from normkit.core.pools import as_ncs
from normkit.errors import OptionError, TypeMismatchError, message
from normkit.kernels import cpu, dispatch
from normkit.kernels.call import Call, Normalized
from normkit.kernels.modes import recorded
from normkit.nn.layer import Layer

__all__ = ["explain"]

_SHORT_CUT = "one fused call for the whole layer"


def explain(layer: Layer, input: Tensor, residual: Tensor | None = None) -> list[str]:
    """Return one line for each way considered for ``layer(input, residual)``, the one used last.

    The layer runs its own forward pass on copies of its buffers, so nothing of it changes and no
    process waits for another; what that pass asks the kernels for is explained, not computed.

    Raises:
        OptionError: the layer is lazy and has not seen an input.
        TypeMismatchError: the layer is not one of normkit's, or the input is no tensor.

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

    if not isinstance(layer, Layer) or not isinstance(input, Tensor):
        raise TypeMismatchError(
            message(
                "a layer of normkit and a tensor to pass to it",
                f"a {type(layer).__name__} and a {type(input).__name__}",
                "explain(layer, x), with the layer that normkit.accelerate makes of torch.nn's",
            )
        )
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    if any(is_lazy(t) for t in tensors if t is not None):
        raise OptionError(
            message(
                "an initialized layer",
                f"{type(layer).__name__} before its first input",
                "call the layer once",
            )
        )
    twin = object.__new__(type(layer))
    # Deep copies, which keep the strides: the kernels look at them.
    buffers = {name: copy.deepcopy(b) for name, b in layer._buffers.items()}
    twin.__dict__ |= layer.__dict__ | {"_buffers": buffers, "_normalize": record}
    with torch.no_grad():
        twin.forward(input, residual)
    if not calls:
        if not type(layer).forward.__module__.startswith("normkit."):
            return [f"{type(layer).__name__}.forward: used"]
        overridden = recorded(input, residual, *layer._parameters.values())
        if overridden or input.is_nested or layer._is_composed(input) or cpu.fused is None:
            return ["PyTorch's operations: used"]
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
        return cpu.why_not()
    if not input.is_cpu:
        return f"the input is on {input.device}"
    return "the layer, its mode or its input is not among those it takes"
