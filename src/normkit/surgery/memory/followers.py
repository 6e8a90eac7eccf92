"""Operations after a normalization that are computed again with it, by their nodes' names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn import functional as F

__all__ = ["activation", "adds"]

_ACTIVATIONS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "ReluBackward": lambda _: torch.relu,
    "HardtanhBackward": lambda node: partial(
        F.hardtanh, min_val=node._saved_min_val, max_val=node._saved_max_val
    ),
    "LeakyReluBackward": lambda node: partial(
        F.leaky_relu, negative_slope=node._saved_negative_slope
    ),
    "SiluBackward": lambda _: F.silu,
    "GeluBackward": lambda node: partial(F.gelu, approximate=node._saved_approximate),
    "HardswishBackward": lambda _: F.hardswish,
}
# Of these nodes the result is saved: of ReLU, and where the names of the nodes in place differ.
_SAVE_RESULT = frozenset(("ReluBackward0", "LeakyReluBackward1", "HardtanhBackward1"))


def activation(node: Any) -> tuple[Callable[[Tensor], Tensor], bool] | None:
    """Return the activation that ``node`` is of, and whether it saves its input; None if none."""
    name = node.name()
    # PyTorch numbers its nodes; one of a user's function may have any name, such as ReluBackward.
    if isinstance(node, BackwardCFunction) or name[-1] not in "01":
        return None
    make = _ACTIVATIONS.get(name[:-1])
    return None if make is None else (make(node), name not in _SAVE_RESULT)


def adds(node: Any) -> bool:
    """Return whether ``node`` is of a plain sum of two tensors."""
    if isinstance(node, BackwardCFunction) or node.name() != "AddBackward0":
        return False
    return len(node.next_functions) == 2 and bool(node._saved_alpha == 1)
