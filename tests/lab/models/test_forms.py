"""Both forms of a network compute what the network does, under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normkit.errors import OptionError
from normkit.lab.models import build
from normkit.lab.models.forms import form

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("lenet5", {"size": 28}),
    ("resnet18", {"size": 32, "width": 8}),
    ("resnet50", {"size": 32, "width": 8}),
    ("densenet", {"size": 32, "growth": 8, "stem": 16}),
]


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_forms_agree_with_the_network(name: str, options: dict[str, Any]) -> None:
    made = {}
    for side in ("plain", "torch", "ours"):
        torch.manual_seed(0)
        model = build(name, **options) if side == "plain" else form(name, side, **options)
        made[side] = model.double()
    x = torch.randn(4, 1, options["size"], options["size"], dtype=torch.float64)
    expected = made["plain"](x)
    names = list(made["plain"].state_dict())
    gradients = torch.autograd.grad(expected.square().sum(), list(made["plain"].parameters()))
    for side in ("torch", "ours"):
        model = made[side]
        assert list(model.state_dict()) == names
        y = model(x)
        torch.testing.assert_close(y, expected)
        found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        torch.testing.assert_close(found, gradients, rtol=1e-6, atol=1e-9)


def test_nothing_is_left_to_fuse() -> None:
    model = form("resnet18", "ours", size=32, width=8)
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    # 17 normalizers before a ReLU; those of the three shortcuts have none.
    acts = [module.act for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (acts.count("relu"), acts.count(None)) == (17, 3)


def test_the_written_form_works_in_place() -> None:
    model = form("densenet", "torch", size=32, growth=8, stem=16)
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert relus and all(relu.inplace for relu in relus)


def test_there_are_two_forms() -> None:
    with pytest.raises(OptionError, match="torch, ours"):
        form("lenet5", "theirs")
