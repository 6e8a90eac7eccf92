"""Every form of a network computes what the network does, under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normkit.errors import OptionError
from normkit.lab.models import build
from normkit.lab.models.forms import form, quickest
from normkit.lab.models.pooling import HalvingMaxPool2d

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


def test_written_form_works_in_place() -> None:
    model = form("densenet", "torch", size=32, growth=8, stem=16)
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert relus and all(relu.inplace for relu in relus)


def test_there_are_two_forms() -> None:
    with pytest.raises(OptionError, match="torch, ours"):
        form("lenet5", "theirs")


SMALL = [
    ("lenet5", {"size": 28}),
    ("lenet5", {"size": 16, "norm_at": "conv"}),
    ("convnet4", {"size": 16}),
    ("cifar10-quick", {"size": 16}),
    ("alexnet", {"size": 28, "hidden": 32, "width": 8, "dropout": 0.5}),
    ("resnet18", {"size": 16, "width": 4}),
    ("densenet", {"size": 28, "growth": 4, "stem": 8}),
]


@pytest.mark.parametrize("norm", ["batch", "none", "torch-batch", "group"])
@pytest.mark.parametrize(("name", "options"), SMALL)
def test_quickest_form_trains_bit_for_bit(name: str, options: dict[str, Any], norm: str) -> None:
    # Few values, so windows of equal ones and of nothing above 0 are frequent.
    images = torch.randint(0, 3, (3, 8, 1, options["size"], options["size"])).float() - 1
    seen = []
    for change in (lambda model: model, quickest):
        torch.manual_seed(0)
        model = build(name, norm=norm, **options).to(memory_format=torch.channels_last)
        model = change(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for batch in images:
            loss = nn.functional.cross_entropy(model(batch), torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            seen.append((loss, model(images[0]), model.state_dict()))
    (loss, outputs, state), (quick_loss, quick_outputs, quick_state) = seen
    assert torch.equal(loss, quick_loss)
    assert torch.equal(outputs, quick_outputs)
    assert list(state) == list(quick_state)
    assert all(torch.equal(state[key], quick_state[key]) for key in state)


def test_relu_and_max_pooling_change_places_where_no_normalizer_takes_the_relu() -> None:
    def order(norm: str, **options: Any) -> list[str]:
        model = quickest(build("lenet5", norm=norm, **options))
        return [type(layer).__name__ for layer in list(model)[1:4]]

    assert order("batch") == ["BatchNorm2d", "Identity", "HalvingMaxPool2d"]
    assert order("none") == ["Identity", "HalvingMaxPool2d", "ReLU"]
    # An average is another one after ReLU than before, and a sigmoid's gradient fades.
    assert order("none", pool="avg") == ["Identity", "ReLU", "AvgPool2d"]
    assert order("none", act="sigmoid") == ["Identity", "Sigmoid", "HalvingMaxPool2d"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (2, 6, 7, 9), (3, 1, 2, 2), (2, 16, 5, 6)])
def test_pooling_by_halves_is_pytorchs(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    pool, expected = HalvingMaxPool2d(), nn.MaxPool2d(2)(x)
    with torch.no_grad():
        assert torch.equal(pool(x), expected)
    x[0, 0, 1, 1] = torch.nan
    with torch.no_grad():
        assert torch.equal(pool(x).isnan(), nn.MaxPool2d(2)(x).isnan())
    x = x.nan_to_num().requires_grad_()
    (gradient,) = torch.autograd.grad(pool(x).sum(), x)
    (theirs,) = torch.autograd.grad(nn.MaxPool2d(2)(x).sum(), x)
    assert torch.equal(gradient, theirs)


def test_only_plain_pooling_in_pairs_is_replaced() -> None:
    others = [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True)]
    others += [nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(2, dilation=2)]
    assert list(quickest(nn.Sequential(*others))) == others
