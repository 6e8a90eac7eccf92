"""Check a change by running what it concerns: a part on random values, the model on the example."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map

from normkit.surgery.fold.values import Value

__all__ = ["distance", "in_float64", "map_tensors", "replay", "rounding", "to_float64"]

_FLOAT64 = 1e-10
# Of half types this many units would be a whole: what folding differs by is some percent at most.
_LARGEST = 0.05


def rounding(dtype: torch.dtype, units: int = 16) -> float:
    """Return the difference that counts as rounding in a type, relative to the largest value.

    In float64 it is some 1e-15 in each of a hundred layers; anything wrong is far beyond 1e-10.

    Args:
        dtype: floating-point type.
        units: units in the last place.

    >>> rounding(torch.float32) < 2e-6, rounding(torch.float64)
    (True, 1e-10)
    """
    return max(_FLOAT64, min(units * torch.finfo(dtype).eps, _LARGEST))


def replay(targets: Sequence[Value], sources: Sequence[Value]) -> list[Tensor]:
    """Run the part of a recorded pass between ``sources`` and ``targets``, on random values.

    Layers are called as they are now. The same values are drawn each time.
    """
    generator = torch.Generator().manual_seed(0)
    known: dict[int, Tensor] = {}

    def draw(value: Value) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return drawn.to(value.device, value.dtype)

    def compute(value: Value) -> Tensor:
        if id(value) not in known:
            maker = value.maker
            if maker is None:
                known[id(value)] = draw(value)
            else:
                args, kwargs = tree_map(
                    lambda leaf: compute(leaf) if isinstance(leaf, Value) else leaf,
                    (maker.args, maker.kwargs),
                )
                run = maker.operation if maker.module is None else maker.module
                results = tree_iter(run(*args, **kwargs))
                known.update(zip(map(id, maker.outputs), results, strict=True))
        return known[id(value)]

    for value in sources:
        known[id(value)] = draw(value)
    with torch.no_grad():
        return [compute(value) for value in targets]


def distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest value of the same tensor.

    Infinite where shapes differ, or values that are not finite, or whole numbers.

    >>> distance([torch.tensor([1.0, 4.0])], [torch.tensor([1.0, 3.0])])
    0.25
    """
    if len(before) != len(after):
        return float("inf")
    return max((_distance(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def _distance(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return float("inf")
    if not before.is_floating_point():
        return 0.0 if torch.equal(before, after) else float("inf")
    a, b = before.cpu().double(), after.cpu().double()
    finite = a.isfinite()
    others = torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
    if not others or not torch.equal(finite, b.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = float(a[finite].abs().max())
    worst = float((a - b)[finite].abs().max())
    return worst / scale if scale else (0.0 if worst == 0 else float("inf"))


@contextlib.contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Give all floating-point parameters and buffers float64 values for a time.

    Each stays the same object, and has its former memory back at the end, also where it was
    changed meanwhile.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    before = [(tensor, tensor.data) for tensor in tensors.values()]
    try:
        for tensor in tensors.values():
            if tensor.dtype != torch.float64:
                tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch with ``function`` applied to its tensors, however it nests them."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        parts = {name: map_tensors(function, getattr(batch, name)) for name in names}
        return dataclasses.replace(batch, **parts)
    if isinstance(batch, (list, tuple)):
        values = [map_tensors(function, part) for part in batch]
        if isinstance(batch, list):
            return values
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return batch


def to_float64(batch: Any) -> Any:
    """Return a batch with its floating-point tensors in float64.

    >>> to_float64([torch.zeros(1), torch.tensor(1)])[0].dtype
    torch.float64
    """
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
