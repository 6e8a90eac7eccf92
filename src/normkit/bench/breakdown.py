"""Break the time of a training step down: normalization, convolution, and the rest.

In forward, hooks before and after each module read the clock. In backward, hooks before and after
each node of the autograd graph do; a node belongs to the module whose call created it. (Module
backward hooks are no option: they insert a node before each module, which forbids in-place
activations.) The rest comprises activations, pooling, dense layers, loss, optimizer, and reading
the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["KINDS", "step_parts"]

KINDS = ("norm", "convolution", "rest")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def kind_of(module: nn.Module) -> str:
    """Return the kind of layer; a fused activation counts as part of it.

    >>> kind_of(nn.Conv2d(1, 1, 1)), kind_of(nn.BatchNorm2d(1)), kind_of(nn.ReLU())
    ('convolution', 'norm', 'rest')
    """
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    return "norm" if isinstance(module, _NORMS) else "rest"


class _Clock:
    """Sum seconds by (kind, direction); hooks modules and the graph nodes they create."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.start: dict[Any, float] = {}
        self.visited: set[Any] = set()
        self.handles: list[Any] = []

    def add(self, kind: str, direction: str, seconds: float) -> None:
        self.seconds[kind, direction] = self.seconds.get((kind, direction), 0.0) + seconds

    def hook(self, module: nn.Module) -> None:
        kind = kind_of(module)

        def before(*_: object) -> None:
            self.start[module] = time.perf_counter()

        def after(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            self.add(kind, "forward", time.perf_counter() - self.start[module])
            inputs = {t.grad_fn for t in args if isinstance(t, Tensor)}
            for node in self._new_nodes(out.grad_fn, inputs):
                self._hook_node(node, kind)

        self.handles.append(module.register_forward_pre_hook(before))
        self.handles.append(module.register_forward_hook(after))

    def _new_nodes(self, node: Any, known: set[Any]) -> Iterator[Any]:
        stack = [node]
        while stack:
            each = stack.pop()
            if each is None or each in self.visited or each in known:
                continue
            self.visited.add(each)
            yield each
            stack.extend(following for following, _ in each.next_functions)

    def _hook_node(self, node: Any, kind: str) -> None:
        start = 0.0

        def before(_: object) -> None:
            nonlocal start
            start = time.perf_counter()

        def after(*_: object) -> None:
            self.add(kind, "backward", time.perf_counter() - start)

        self.handles.append(node.register_prehook(before))
        self.handles.append(node.register_hook(after))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def step_parts(
    model: nn.Module, forward: Callable[[], Tensor], finish: Callable[[], object]
) -> dict[str, float]:
    """Return seconds of one training step by kind and direction, such as ``norm_backward``.

    ``step`` is the total; the other entries sum to it.

    Args:
        model: its modules are hooked.
        forward: computes the loss.
        finish: runs after the backward pass; the optimizer's step.
    """
    clock = _Clock()
    try:
        for module in model.modules():
            if kind_of(module) != "rest":
                clock.hook(module)
        start = time.perf_counter()
        loss = forward()
        forward_end = time.perf_counter()
        loss.backward()
        backward_end = time.perf_counter()
        finish()
        end = time.perf_counter()
    finally:
        clock.close()
    seconds = {
        f"{kind}_{direction}": clock.seconds.get((kind, direction), 0.0)
        for kind in KINDS[:2]
        for direction in ("forward", "backward")
    }
    seconds["rest_forward"] = (
        forward_end - start - seconds["norm_forward"] - seconds["convolution_forward"]
    )
    seconds["rest_backward"] = (
        backward_end - forward_end - seconds["norm_backward"] - seconds["convolution_backward"]
    )
    seconds["rest_update"] = end - backward_end
    seconds["step"] = end - start
    return seconds
