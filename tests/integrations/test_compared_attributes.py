"""Layers of one class are compared one by one where their attributes differ, whatever those are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk


class Norm(nn.Module):
    """As code that comes with weights: options of every kind."""

    def __init__(
        self,
        axes: Any = (-1,),
        gain: Any = 1.0,
        post: Callable[[Tensor], Tensor] | None = None,
        options: Any = None,
        child: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6
        self.axes, self.gain, self.post, self.options = axes, gain, post, options
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain if not isinstance(self.gain, (list, dict)) else self.gain[0]
        y = gain * self.weight * x * torch.rsqrt(x.pow(2).mean(self.axes, keepdim=True) + self.eps)
        if self.options is not None:
            y = y * self.options.gain
        if self.child is not None:
            y = y * self.child.gain  # type: ignore[operator]
        return y if self.post is None else self.post(y)


Norm.__module__ = "transformers_modules.any.modeling_any"
Norm.__name__ = Norm.__qualname__ = "AnyRMSNorm"


class Options:
    def __init__(self, gain: float) -> None:
        self.gain = gain


class Child(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain


@pytest.mark.parametrize(
    "others",
    [
        {"axes": (-2,)},
        {"gain": [3.0]},
        {"gain": {0: 3.0}},
        {"gain": torch.tensor(3.0)},
        {"post": torch.tanh},
        {"post": lambda x: x + 1},
        {"options": Options(2.0)},
        {"child": Child(2.0)},
    ],
    ids=lambda others: next(iter(others)),
)
def test_one_verdict_is_not_taken_for_another_layer(others: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "gain": {"gain": [1.0]}, "post": {"post": lambda x: x}, "child": {"child": Child(1.0)},
        "options": {"options": Options(1.0)}, "axes": {},
    }[next(iter(others))]  # fmt: skip
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    for order in itertools.permutations([{}, usual, others]):
        layers = nn.ModuleList(Norm(**options) for options in order).double()
        before = [layer(x) for layer in layers]
        handle = nk.accelerate(layers)
        assert handle.changed  # the usual ones
        for layer, y in zip(layers, before, strict=True):
            torch.testing.assert_close(layer(x), y)
        handle.undo()
