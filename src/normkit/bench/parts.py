"""Where the time of a training step goes: normalization, convolution, and the rest.

Forward, hooks before and after each module read the clock. Backward, hooks before and after each
node of the autograd graph do: a node belongs to the module during whose call it came to be. (Not
module backward hooks: they put a node of their own before each module, which forbids activations
in place.) The rest is what is left of the step: activations, pooling, dense layers, loss,
optimizer, and the reading of the clock.
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
    """Which kind of layer a module is; what it applies itself (a fused ReLU) is part of it.

    >>> kind_of(nn.Conv2d(1, 1, 1)), kind_of(nn.BatchNorm2d(1)), kind_of(nn.ReLU())
    ('convolution', 'norm', 'rest')
    """
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    return "norm" if isinstance(module, _NORMS) else "rest"


class _Clock:
    """Sums seconds by (kind, direction), and knows which graph nodes belong to which kind."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.begun: dict[Any, float] = {}
        self.seen: set[Any] = set()
        self.handles: list[Any] = []

    def add(self, kind: str, direction: str, seconds: float) -> None:
        self.seconds[kind, direction] = self.seconds.get((kind, direction), 0.0) + seconds

    def watch(self, module: nn.Module) -> None:
        kind = kind_of(module)

        def before(*_: object) -> None:
            self.begun[module] = time.perf_counter()

        def after(_: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            self.add(kind, "forward", time.perf_counter() - self.begun[module])
            inputs = {t.grad_fn for t in given if isinstance(t, Tensor)}
            for node in self._new(out.grad_fn, inputs):
                self._watch_node(node, kind)

        self.handles.append(module.register_forward_pre_hook(before))
        self.handles.append(module.register_forward_hook(after))

    def _new(self, node: Any, known: set[Any]) -> Iterator[Any]:
        waiting = [node]
        while waiting:
            each = waiting.pop()
            if each is None or each in self.seen or each in known:
                continue
            self.seen.add(each)
            yield each
            waiting.extend(following for following, _ in each.next_functions)

    def _watch_node(self, node: Any, kind: str) -> None:
        begin = 0.0

        def before(_: object) -> None:
            nonlocal begin
            begin = time.perf_counter()

        def after(*_: object) -> None:
            self.add(kind, "backward", time.perf_counter() - begin)

        self.handles.append(node.register_prehook(before))
        self.handles.append(node.register_hook(after))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def step_parts(
    model: nn.Module, forward: Callable[[], Tensor], finish: Callable[[], object]
) -> dict[str, float]:
    """Seconds of one training step by kind and direction, such as ``norm_backward``.

    ``step`` is all of it, and the parts sum up to it.

    Args:
        model: whose modules are watched.
        forward: computes the loss.
        finish: what comes after the backward pass, the optimizer's step.
    """
    clock = _Clock()
    try:
        for module in model.modules():
            if kind_of(module) != "rest":
                clock.watch(module)
        begin = time.perf_counter()
        loss = forward()
        forwarded = time.perf_counter()
        loss.backward()
        returned = time.perf_counter()
        finish()
        end = time.perf_counter()
    finally:
        clock.close()
    found = {
        f"{kind}_{direction}": clock.seconds.get((kind, direction), 0.0)
        for kind in KINDS[:2]
        for direction in ("forward", "backward")
    }
    found["rest_forward"] = forwarded - begin - found["norm_forward"] - found["convolution_forward"]
    found["rest_backward"] = (
        returned - forwarded - found["norm_backward"] - found["convolution_backward"]
    )
    found["rest_update"] = end - returned
    found["step"] = end - begin
    return found
