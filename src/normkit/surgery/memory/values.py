"""Values that autograd saves: kept, or computed again when they are read."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Value"]

_graph_task = torch._C._current_graph_task_id
# Values read in each backward pass that runs, by its number; dropped at its end.
_read_in: dict[int, list[weakref.ref[Value]]] = {}


class Value:
    """One value of the forward pass and its readers.

    Several operations may save the same value. It is computed once in a backward pass and shared
    by them; after the last of them, and in any case after the pass, it is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_inputs",
        "_place",
        "_reads",
        "_repeat",
        "_shared",
        "_task",
        "_tensor",
        "alive",
        "intact",
        "passes",
        "read_by",
        "readers",
        "version",
    )  # fmt: skip

    def __init__(self, t: Tensor, version: int | None = None) -> None:
        """Take ``t`` as it is; ``version``: the one to count as this value."""
        self._place = _place(t)
        self.version = _version(t) if version is None else version
        self.alive: Callable[[], Tensor | None] = weakref.ref(t)
        self.intact = True
        """False once an operation has saved the tensor after a change."""
        self.readers = 0
        self.read_by: set[int] = set()
        """Numbers of the nodes that have saved it."""
        self.passes = 0
        """Passes that it takes to compute it again, those before it included."""
        self._tensor: Tensor | None = None
        self._inputs: tuple[Value | None, ...] = ()
        self._repeat: Callable[..., Tensor] | None = None
        self._shared: Tensor | None = None
        self._reads = 0
        self._task = -1

    def keep(self, t: Tensor) -> Value:
        """Keep the tensor. Of a result without its graph, which would otherwise hold itself."""
        self._tensor = t if t.grad_fn is None else t.detach()
        return self

    def drop(self, inputs: tuple[Value | None, ...], repeat: Callable[..., Tensor]) -> Value:
        """Keep ``inputs`` instead, of which ``repeat`` computes the value."""
        self._tensor, self._inputs, self._repeat = None, inputs, repeat
        self.passes = 1 + sum(value.passes for value in inputs if value is not None)
        return self

    @property
    def dropped(self) -> bool:
        """Return True if it is computed again."""
        return self._repeat is not None

    def is_of(self, t: Tensor) -> bool:
        """Return whether ``t`` is this value: the same memory, and nothing written to it since."""
        return _version(t) == self.version and _place(t) == self._place

    def shares_memory(self, t: Tensor) -> bool:
        """Return whether ``t`` lies where this value lay, in the same shape."""
        return _place(t) == self._place

    def unchanged(self) -> bool:
        """Return whether its tensor is still there as it was."""
        t = self.alive()
        return t is not None and self.is_of(t)

    def read(self) -> Tensor:
        """Return the value to an operation of the backward pass."""
        y = self.get()
        task = _graph_task()
        if self._repeat is None or self.readers < 2 or task == -1:
            return y
        self._reads += 1
        if self._reads >= self.readers:
            self.forget()
        else:
            self._shared, self._task = y, task
            _forget_after(task, self)
        return y

    def get(self) -> Tensor:
        """Return the value; computed again unless it is kept, or shared in this backward pass.

        Raises:
            RuntimeError: what it is kept as, or computed from, was modified in place.
        """
        if self._repeat is None:
            t = self._tensor
            assert t is not None
            if _version(t) != self.version:
                raise RuntimeError(_MODIFIED.format(list(t.shape), _version(t), self.version))
            return t
        shared = self._shared
        # A pass that has raised leaves what it computed.
        if shared is not None and self._task == _graph_task():
            return shared
        inputs = [None if value is None else value.get() for value in self._inputs]
        with torch.no_grad():
            return self._repeat(*inputs)

    def forget(self) -> None:
        """Drop what was computed for this backward pass."""
        self._shared, self._reads = None, 0


# As PyTorch says it, which does not look at versions itself where hooks keep the tensors.
_MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a tensor of size {} is at version {}; expected version {} instead"
)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _place(t: Tensor) -> tuple[Any, ...]:
    # Of a sparse or nested tensor nothing is ever computed again.
    if t.layout is not torch.strided or t.is_nested:
        return (t.layout, id(t))
    return (t.data_ptr() if type(t) is Tensor else id(t), t.shape, t.stride(), t.dtype)


def _forget_after(task: int, value: Value) -> None:
    """Have the value dropped when this backward pass ends, whether all have read it or not."""
    values = _read_in.get(task)
    if values is None:
        for other in [k for k, rest in _read_in.items() if not any(r() for r in rest)]:
            del _read_in[other]  # of a pass that has raised
        values = _read_in[task] = []
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: _forget_all(task))
    values.append(weakref.ref(value))


def _forget_all(task: int) -> None:
    for reference in _read_in.pop(task, ()):
        value = reference()
        if value is not None:
            value.forget()
