"""Small networks with a fault, and the findings of one rule about them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor import Finding


def find(model: nn.Module, rule: str, **options: Any) -> tuple[Finding, ...]:
    return nk.diagnose(model, **options).of(rule)


def one(model: nn.Module, rule: str, severity: str, *places: str, **options: Any) -> Finding:
    """Return the finding of a rule, which has to be the only one."""
    (found,) = find(model, rule, **options)
    assert found.severity == severity
    assert found.places == places
    return found


def net(**options: Any) -> nn.Sequential:
    """Two normalization layers, "1" and "4", that were trained: γ, β and statistics differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    for layer in (model[1], model[4]):
        trained(layer)
    return model


def trained(layer: Any) -> Any:
    """Give a layer the γ, β and statistics that training leaves."""
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.5, 0.5)
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return layer


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 4) for _ in range(count)
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(
        after[key].dtype == tensor.dtype and torch.equal(after[key], tensor)
        for key, tensor in before.items()
    )
