"""One forward pass: which values autograd saves, and how those after a norm are computed again.

A value is named by the edge of the graph that it comes out of, the node and the number of the
output. Each operation that is recorded gives its result an edge, in place or not, so a tensor after
``out += identity`` has another name than before. What is not recorded, a change under ``no_grad``,
moves the tensor's version, which is compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normkit.compat import top_saved_tensor_hooks
from normkit.kernels.outputs import Repeat
from normkit.surgery.memory.followers import activation, adds
from normkit.surgery.memory.values import Value

__all__ = ["Recorder", "top_hooks"]

MOST = 200
"""Passes that computing a value again may take. Blocks whose norms read their own input double them
each; and each pass is a call within that of the one after it."""

_next_node = torch._C._autograd._get_sequence_nr


def top_hooks() -> Any:
    """Return the pair of saved-tensor hooks that is active in this thread, or None."""
    return None if top_saved_tensor_hooks is None else top_saved_tensor_hooks(False)


def _never() -> bool:
    return False


class Recorder:
    """Hooks on saved tensors, and listener to outputs, for one forward pass."""

    def __init__(self, blocks: bool, runs: Callable[[], bool]) -> None:
        """Record while ``runs()``: after an interrupt nobody takes the hooks away at once."""
        self._blocks, self._runs = blocks, runs
        # By node and number of the output. Nodes and values live until the pass ends.
        self._values: dict[tuple[Any, int], Value] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, Value.read)

    def active(self) -> bool:
        """Return whether tensors saved now come here, and not to a checkpoint's hooks."""
        top = top_hooks()
        return top is not None and top[0] == self._pack

    def close(self) -> None:
        """Let go of the graph, and of the frame that ``runs`` reads, which holds the output."""
        self._values.clear()
        self._runs = _never

    def wants(self, y: Tensor, residual: Tensor | None) -> bool:
        """Return whether ``y`` may be computed again."""
        takes = self._blocks or residual is None
        return takes and y.grad_fn is not None and self.active()

    def output(self, y: Tensor, x: Tensor, residual: Tensor | None, repeat: Repeat) -> None:
        """Drop the norm's output ``y``; it may have been saved, by its own node."""
        inputs = (self._value(x), None if residual is None else self._value(residual))
        value = self._values.setdefault((y.grad_fn, y.output_nr), Value(y))
        passes = sum(each.passes for each in inputs if each is not None)
        if value.is_of(y) and passes <= MOST:
            value.drop(inputs, repeat)

    def _pack(self, t: Tensor) -> Value:
        if not self._runs():
            self.close()
            return Value(t).keep(t)
        value = self._value(t)
        value.readers += 1
        # The number of the node that saves it, which is the last one.
        value.read_by.add(_next_node() - 1)
        return value

    def _value(self, t: Tensor) -> Value:
        node = t.grad_fn
        if node is None:
            return Value(t).keep(t)
        key = (node, t.output_nr)
        value = self._values.get(key)
        if value is None:
            value = self._followed(t, node) or self._viewed(t) or Value(t).keep(t)
            self._values[key] = value
            return value
        if value.is_of(t):
            return value
        value.intact = False
        return Value(t).keep(t)

    def _viewed(self, t: Tensor) -> Value | None:
        """Return ``t`` as another shape of a dropped value, as of the input of a linear layer."""
        base = t._base
        if base is None or base.grad_fn is None:
            return None
        value = self._values.get((base.grad_fn, base.output_nr))
        same = value is not None and value.dropped and value.is_of(base)
        if not (
            same and t.is_contiguous() and base.is_contiguous() and t.numel() == base.numel()
            and t.dtype == base.dtype
        ):  # fmt: skip
            return None
        shape = t.shape
        return Value(t).drop((value,), lambda y: y.view(shape))

    def _followed(self, t: Tensor, node: Any) -> Value | None:
        """Return ``t`` as what follows from dropped values by an activation or a sum, or None."""
        if self._blocks and adds(node):
            added = self._added(node, t)
            if added is None or added.passes > MOST:
                return None
            return added if added.is_of(t) else None
        act = activation(node)
        if act is None:
            return None
        function, saves_input = act
        edge = node.next_functions[0]
        before = self._values.get(edge)
        if before is None and self._blocks and edge[0] is not None and adds(edge[0]):
            before = self._added(edge[0], t)
            if before is not None:
                self._values[edge] = before
        if before is None or not before.dropped or not before.intact or before.passes > MOST:
            return None
        in_place = before.shares_memory(t) and t._version == before.version + 1
        # Under no_grad it may have been changed in between. Its node, if it saves it, has looked.
        verified = before.unchanged() or (saves_input and node._sequence_nr() in before.read_by)
        if in_place or (not before.shares_memory(t) and verified and t._version == 0):
            return Value(t).drop((before,), function)
        return None

    def _added(self, node: Any, t: Tensor) -> Value | None:
        """Return the sum that ``node`` is of, which ``t`` is or has been, or None."""
        first, second = (self._values.get(edge) for edge in node.next_functions)
        if first is None or second is None or not (first.dropped or second.dropped):
            return None
        if not (first.intact and second.intact):
            return None
        if second.shares_memory(t):
            first, second = second, first
        a, b = first.alive(), second.alive()
        if b is None or not second.is_of(b) or b.shape != t.shape or b.dtype != t.dtype:
            return None
        if first.shares_memory(t):  # in place
            value = Value(t, first.version + 1)
            value.alive = first.alive
        elif a is not None and first.is_of(a) and a.shape == t.shape and a.dtype == t.dtype:
            value = Value(t, 0)
        else:
            return None
        return value.drop((first, second), torch.add)
