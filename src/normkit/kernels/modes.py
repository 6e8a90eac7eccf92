"""PyTorch's modes around a call that a layer must respect."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from normkit.compat import exporting, tells_exporting

__all__ = [
    "autocast_wide",
    "batched",
    "compiling_plainly",
    "exporting",
    "recomputing",
    "recorded",
    "transformed",
]

_functorch_active = torch._C._are_functorch_transforms_active
_graph_task = torch._C._current_graph_task_id
# Tensors that override nothing.
_PLAIN = frozenset((Tensor, Parameter, type(None)))


def _function_mode() -> bool:
    """Return whether a torch function mode is active other than that of a default device."""
    depth = torch._C._len_torch_function_stack()
    return depth > 0 and any(
        type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(depth)
    )


def transformed(*tensors: Tensor | None) -> bool:
    """Return True if PyTorch must see the layer's single operations.

    True while compiling, exporting or tracing, inside ``torch.func`` transforms, forward-mode
    differentiation and torch function modes, and if any of ``tensors`` is of a subclass.
    """
    return (
        torch.compiler.is_compiling()
        or not _PLAIN.issuperset(map(type, tensors))
        or _functorch_active()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or forward_ad._current_level >= 0
        or _function_mode()
    )


def recorded(*tensors: Tensor | None) -> bool:
    """Return True if a tool looks for the functions that ``torch.nn``'s layers call.

    True while exporting or tracing, inside torch function modes, and if any of ``tensors`` is of
    a subclass, which may override those functions and no others. False inside the other
    transforms, which see through any operation, and while compiling, where the compiler fuses the
    formula.
    """
    if torch.compiler.is_compiling():
        return bool(exporting())
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or not _PLAIN.issuperset(map(type, tensors))
        or _function_mode()
    ) and not (_functorch_active() or forward_ad._current_level >= 0)


def compiling_plainly(*tensors: Tensor | None) -> bool:
    """Return True if ``torch.compile`` records the call and nothing else looks into it.

    False while exporting, inside ``torch.func`` transforms and forward-mode differentiation, and if
    any of ``tensors`` is of a subclass: all of them want operations that they know.
    """
    return (
        torch.compiler.is_compiling()
        and tells_exporting
        and not exporting()
        and not _functorch_active()
        and forward_ad._current_level < 0
        and all(t is None or type(t) in (Tensor, Parameter) for t in tensors)
    )


def differentiates(*tensors: Tensor | None) -> bool:
    """Return True if autograd records operations on ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def batched(t: Tensor) -> bool:
    """Return True if ``t`` stands for one of several values, as ``is_grads_batched`` makes them."""
    return is_batchedtensor(t) or is_legacy_batchedtensor(t)


def recomputing() -> bool:
    """Return True inside a backward pass.

    That is where activation checkpointing runs a forward again whose statistics were counted
    the first time.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(_graph_task() != -1)


def autocast_wide(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Widen half types where autocast does so for PyTorch's own layer and group normalization.

    On CUDA both run and return float32 under autocast; on a CPU they keep the type.
    """
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
        return x.float(), None if residual is None else residual.float()
    return x, residual
