"""Everything of a model, to compare before and after."""

from __future__ import annotations

from typing import Any

from torch import nn


def state(model: nn.Module) -> list[Any]:
    """Everything of a model: classes, attributes, tensors by identity and by value, hooks."""
    found: list[Any] = []
    for module in model.modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}
        found.append((type(module), repr(sorted(own.items()))))
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                found.append((key, id(tensor), None if tensor is None else tensor.tolist(),
                              None if tensor is None else tensor.requires_grad))  # fmt: skip
    return found
