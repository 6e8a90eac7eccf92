"""Read what a model returns: the values and the loss in it.

One rule for every kind of output:

* a tensor is the *values*; one without axes is a *loss*;
* of a mapping, a dataclass or a named tuple (Hugging Face's outputs are such), the entry ``loss``
  is the loss and ``logits`` the values, which are then scores; without ``logits`` the first tensor
  with at least two axes, also within its entries, else the first with one;
* of a tuple or list, a tensor without axes is the loss if it comes first, or follows the only other
  part; one behind several is anything, such as a scale. The values are as above;
* of a mapping with nothing but numbers, such as the losses of a detector, the sum is the loss;
* a list of mappings or of lists, such as boxes image by image, has no values: two modes find
  different boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.statistics.batches.tensors import tensors_in

__all__ = [
    "Output",
    "read_output",
]


class Output(NamedTuple):
    """Comparable parts of what a model returned.

    Attributes:
        values: (N, \\*), to compare; None if there are none.
        loss: the model's own; None if it returned none.
        logits: whether the model calls the values so.
        kind: name of the type it returned, with an article.
        tensors: whether there is any tensor with axes in it, comparable or not.
    """

    values: Tensor | None
    loss: float | None
    logits: bool
    kind: str
    tensors: bool


def read_output(output: Any) -> Output:
    """Find the values and the loss in what a model returned.

    >>> scores = torch.zeros(8, 3)
    >>> read = read_output({"loss": torch.tensor(0.5), "logits": scores})
    >>> read.loss, read.logits, read.values.shape
    (0.5, True, torch.Size([8, 3]))
    >>> read_output((torch.tensor(0.25), scores)).loss
    0.25
    >>> read_output({"boxes": torch.tensor(1.0), "classes": torch.tensor(0.5)}).loss
    1.5
    """
    values, loss, logits = _parts(output)
    return Output(
        None if values is None else _dense(values.detach()),
        None if loss is None else float(loss),
        logits,
        "nothing" if output is None else f"a {type(output).__name__}",
        any(tensor.dim() for tensor in tensors_in(output)),
    )


def _parts(output: Any) -> tuple[Tensor | None, Any, bool]:
    """Return the values, the loss, and whether the values are called logits."""
    if isinstance(output, Tensor):
        return (_first(_comparable(output)), None, False) if output.dim() else (None, output, False)
    entries = _entries(output)
    if entries is None:
        parts = (
            [one for one in output if one is not None] if isinstance(output, (list, tuple)) else []
        )
        places = parts[:2] if len(parts) == 2 else parts[:1]
        loss = next((part for part in places if isinstance(part, Tensor) and not part.dim()), None)
        return _first(_comparable(output)), loss, False
    rest = {key: value for key, value in entries.items() if value is not None}
    if rest and all(isinstance(value, Tensor) and not value.dim() for value in rest.values()):
        return None, rest.get("loss", sum(map(float, rest.values()))), False
    loss = rest.pop("loss") if _is_loss(rest.get("loss")) else None
    logits = rest.get("logits")
    if isinstance(logits, Tensor) and logits.dim():
        return logits, loss, True
    return _first(_comparable(rest)), loss, False


def _dense(values: Tensor) -> Tensor:
    if values.is_quantized:
        return values.dequantize()
    return values if values.layout == torch.strided else values.to_dense()


def _entries(output: Any) -> Mapping[str, Any] | None:
    """Return the named entries of a mapping, a dataclass or a named tuple."""
    if isinstance(output, Mapping):
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    return None


def _is_loss(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dim() < 2
    return isinstance(value, float)


def _first(tensors: list[Tensor]) -> Tensor | None:
    """Return the first tensor with a batch axis and another one, else the first with one axis."""
    flat = next((tensor for tensor in tensors if tensor.dim() == 1), None)
    return next((tensor for tensor in tensors if tensor.dim() > 1), flat)


def _comparable(part: Any) -> list[Tensor]:
    """Return the tensors of an output, or a part of one; none of lists that go by sample."""
    if isinstance(part, Tensor):
        # Nested ones have no axes in common; sparse ones are what they are when dense.
        return [] if part.is_nested else [part]
    entries = _entries(part)
    if entries is not None:
        part = tuple(entries.values())
    if isinstance(part, list) and not any(isinstance(one, Tensor) for one in part):
        return []
    if isinstance(part, (list, tuple)):
        return [tensor for one in part for tensor in _comparable(one)]
    return []
