"""The network that gives images: HINet's block, its normalizers, its shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import OptionError
from normkit.lab import models
from normkit.lab.models.denoiser import Denoiser, RestoringBlock
from normkit.nn import HalfInstanceNorm2d

SLOPE = 0.2


def build(**options: object) -> Denoiser:
    torch.manual_seed(0)
    chosen = {"norm": "half-instance", "act": "leaky_relu_0.2", "width": 8} | options
    model = models.build("denoiser", **chosen)  # type: ignore[arg-type]
    assert isinstance(model, Denoiser)
    return model


def block_by_hand(block: RestoringBlock, x: Tensor, halved: bool) -> Tensor:
    """The source's formula, in float64, from the weights alone."""
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1)
    if halved:
        first, rest = y.chunk(2, dim=1)
        spread = first.var((2, 3), correction=0, keepdim=True)
        first = (first - first.mean((2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
        y = torch.cat([first, rest], dim=1)
    y = torch.where(y > 0, y, SLOPE * y)
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1)
    y = torch.where(y > 0, y, SLOPE * y)
    return y + F.conv2d(x, block.shortcut.weight, block.shortcut.bias)


@pytest.mark.parametrize("norm", ["half-instance", "none"])
def test_network_is_the_formula(norm: str) -> None:
    model = build(norm=norm).double()
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    halved = norm != "none"
    first, second = (module for module in model.down if isinstance(module, RestoringBlock))
    high = block_by_hand(first, model.first(x), halved)
    low = block_by_hand(second, model.shrink[0](high), halved)
    assert low.shape == (2, 16, 14, 14)
    both = torch.cat([model.enlarge[0](low), model.bridge[0](high)], dim=1)  # type: ignore[index]
    up = model.up[0]
    assert isinstance(up, RestoringBlock)
    expected = x + model.last(block_by_hand(up, both, False))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("depth", "size"), [(1, 7), (2, 28), (3, 28), (5, 32)])
def test_images_come_out_as_they_went_in(depth: int, size: int) -> None:
    model = build(depth=depth, size=size, in_channels=3)
    x = torch.randn(2, 3, size, size)
    y = model(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_normalizer_stands_on_the_way_down_only() -> None:
    model = build(depth=3)
    halves = [name for name, m in model.named_modules() if isinstance(m, HalfInstanceNorm2d)]
    assert halves == ["down.0.norm1", "down.1.norm1", "down.2.norm1"]
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {SLOPE}


def test_arms_start_from_the_same_weights() -> None:
    plain = dict(build(norm="none").named_parameters())
    for norm in ("half-instance", "instance", "batch", "group"):
        mine = dict(build(norm=norm).named_parameters())
        assert all(torch.equal(mine[name], weight) for name, weight in plain.items())
        assert all("norm1" in name for name in mine.keys() - plain.keys())


@pytest.mark.parametrize("wrong", [{"depth": 4}, {"width": 0}, {"depth": 0}, {"norm_at": "fc"}])
def test_what_cannot_be_built_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="Fix"):
        build(**wrong)
