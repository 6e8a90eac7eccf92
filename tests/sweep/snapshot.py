"""All that a tool might disturb, recorded bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["differences", "snapshot"]

_TABLES = {"_parameters", "_buffers", "_modules"}


def _bits(tensor: Tensor) -> bytes:
    if tensor.is_meta or is_lazy(tensor):
        return b""
    flat = tensor.detach().reshape(-1).contiguous().clone(memory_format=torch.contiguous_format)
    return torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage()).numpy().tobytes()


def snapshot(model: nn.Module, identity: bool = True) -> dict[str, Any]:
    """Record modules, classes, modes, attributes, tensors, gradients and random states.

    ``identity``: record which objects the tensors are, too.
    """
    rows: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        rows[f"{name} class"] = type(module)
        if identity:
            rows[f"{name} object"] = id(module)
        for key, value in vars(module).items():
            if key in _TABLES:
                continue
            rows[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
        rows[f"{name} keys"] = (list(module._parameters), list(module._buffers))
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is None:
                    rows[f"{name}.{key}"] = None
                    continue
                if identity:
                    rows[f"{name}.{key} object"] = id(tensor)
                lazy = is_lazy(tensor)
                rows[f"{name}.{key} type"] = (
                    tensor.dtype if lazy else (tensor.dtype, tensor.shape, tensor.stride())
                )
                rows[f"{name}.{key} bits"] = _bits(tensor)
                rows[f"{name}.{key} requires_grad"] = tensor.requires_grad
                if not is_lazy(tensor) and not tensor.is_inference():
                    grad = tensor.grad
                    rows[f"{name}.{key} grad"] = None if grad is None else _bits(grad)
    rows["torch's random state"] = _bits(torch.get_rng_state())
    rows["numpy's random state"] = np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]
    rows["Python's random state"] = random.getstate()
    rows["gradients enabled"] = torch.is_grad_enabled()
    rows["inference mode"] = torch.is_inference_mode_enabled()
    rows["default type"] = torch.get_default_dtype()
    return rows


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return sorted(
        key
        for key in before.keys() | after.keys()
        if not _same(before.get(key, "absent"), after.get(key, "absent"))
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and _bits(a) == _bits(b)
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
