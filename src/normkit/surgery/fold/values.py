"""Values of a pass, the events that make and use them, and what a pass did."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from normkit.statistics.batches.tensors import tensors_in

__all__ = ["Event", "Recording", "Value", "output_tensors", "values_in"]


@dataclasses.dataclass(eq=False)
class Value:
    """One value of a tensor, as it was between two writes.

    Attributes:
        shape, dtype, device: of the tensor.
        maker: the event that made it; None for inputs, parameters and constants, and where that
            is not known.
        index: its place among the tensors that the maker returned.
        uses: the events that took it, in order, once for each time.
        seen_by: who else may look at it: a hook, code outside torch, the caller of the model.
        overwritten: whether its tensor was written to later in the pass.
        tensor_id: identity of the model's parameter or buffer that it is; 0 for all else.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    maker: Event | None = None
    index: int = 0
    uses: list[Event] = dataclasses.field(default_factory=list)
    seen_by: list[str] = dataclasses.field(default_factory=list)
    overwritten: bool = False
    tensor_id: int = 0


@dataclasses.dataclass(eq=False)
class Event:
    """One operation, or one call of a layer, with values in place of tensors.

    Attributes:
        name: the module's name in the model, or the operation's.
        operation: the operation; None for a call of a layer.
        module: the layer; None for an operation.
        args, kwargs: what it was given.
        outputs: the values of all tensors that it returned.
        inner: the operations within a call.
    """

    name: str
    operation: Any
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value] = dataclasses.field(default_factory=list)
    inner: list[Event] = dataclasses.field(default_factory=list)

    @property
    def inputs(self) -> list[Value]:
        """Values that it was given, however nested."""
        return values_in([self.args, self.kwargs])


@dataclasses.dataclass
class Recording:
    """Calls and uses of one pass.

    Attributes:
        calls: the calls of each layer, by the module's identity, in order.
        users: by the identity of each parameter or buffer, the modules that used it within their
            call; None stands for code outside of layers.
        reached: identities of all modules that were called.
        dtypes: the floating-point types of all values.
    """

    calls: dict[int, list[Event]] = dataclasses.field(default_factory=dict)
    users: dict[int, set[int | None]] = dataclasses.field(default_factory=dict)
    reached: set[int] = dataclasses.field(default_factory=set)
    dtypes: set[torch.dtype] = dataclasses.field(default_factory=set)


def values_in(nested: Any) -> list[Value]:
    """Return the values within nested arguments."""
    return [leaf for leaf in tree_iter(nested) if isinstance(leaf, Value)]


def output_tensors(output: Any) -> list[Tensor]:
    """Return the tensors in a model's output, those within dataclasses and objects too.

    >>> from types import SimpleNamespace
    >>> len(output_tensors((torch.ones(1), SimpleNamespace(boxes=torch.ones(2)))))
    2
    """
    tensors: list[Tensor] = []
    for leaf in tree_iter(output):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif inside := tensors_in(leaf):
            tensors += inside
        elif not isinstance(leaf, type) and hasattr(leaf, "__dict__"):
            tensors += tensors_in(list(vars(leaf).values()))
    return tensors
