"""A layer that code reaches past the model's modules keeps its activation, and is named."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Any:
        return self.layer(x)


class Holds(nn.Module):
    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.layer = nk.BatchNorm1d(4, act="relu")
        self.call = hold(self.layer)

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


@pytest.mark.parametrize(
    "hold",
    [
        lambda layer: functools.partial(layer),
        lambda layer: functools.partial(lambda net, x: net(x), layer),
        lambda layer: SimpleNamespace(layer=layer, run=lambda x: layer(x)).run,
        lambda layer: layer.forward,
        lambda layer: lambda x: layer(x),
        Slots,
    ],
    ids=["partial", "argument", "object", "method", "closure", "slots"],
)
def test_layers_held_elsewhere(hold: Any) -> None:
    model, x = Holds(hold).eval(), torch.randn(3, 4)
    expected = model(x)
    with pytest.warns(UserWarning, match="past its modules"):
        handle = nk.convert(model, "torch")
    assert not handle.changed
    assert torch.equal(model(x), expected)
