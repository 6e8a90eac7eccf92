"""The transformer on patches, and what may stand in for its normalizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import OptionError
from normkit.lab import models
from normkit.lab.models.noise import ShiftingNoise
from normkit.lab.models.pointwise import DynamicErf, DynamicTanh
from normkit.lab.models.vit import VisionTransformer

SMALL: dict[str, Any] = {"patch": 7, "dim": 8, "depth": 2, "heads": 2, "act": "gelu"}
TOKEN_NORMS = ["none", "layer", "dyt", "derf"]


def build(norm: str = "layer", **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = models.build("vit", norm=norm, **(SMALL | options))
    assert isinstance(model, VisionTransformer)
    return model


def attention_by_hand(x: Tensor, block: Any, heads: int) -> Tensor:
    query, key, value = block.qkv(x).chunk(3, dim=-1)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, dim=-1) for t in (query, key, value)), strict=True):
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        parts.append(weights @ v)
    result: Tensor = block.out(torch.cat(parts, dim=-1))
    return result


def test_network_is_the_formula() -> None:
    model = build().double()
    images = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    # Patches row by row, each row by row within itself, as a convolution reads them.
    patches = images.unfold(2, 7, 7).unfold(3, 7, 7).reshape(3, 16, 49)
    x = patches @ model.patches.weight.flatten(1).T + model.patches.bias + model.positions
    for block in model.blocks:
        x = x + attention_by_hand(block.norm1(x), block.attention, heads=2)  # type: ignore[operator]
        y = F.gelu(block.fc1(block.norm2(x)))  # type: ignore[operator]
        x = x + block.fc2(y)  # type: ignore[operator]
    torch.testing.assert_close(model(images), model.fc(model.norm(x).mean(1)))


@pytest.mark.parametrize("norm", TOKEN_NORMS)
def test_normalizers_of_tokens_share_all_other_weights(norm: str) -> None:
    model, plain = build(norm), build("none")
    ours = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, ours[name]), name
    # A normalizer before each part of each block, and one before the logits.
    count = sum(".norm" in f".{name}" for name, _ in model.named_modules())
    assert count == 5
    model(torch.randn(2, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_tokens_are_normalized_each_on_its_own() -> None:
    layer = build().norm
    assert isinstance(layer, nn.LayerNorm) and layer.normalized_shape == (8,)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "noisy-batch", "noise"])
def test_other_normalizers_are_refused(norm: str) -> None:
    with pytest.raises(OptionError, match="normalizer of tokens"):
        build(norm)


@pytest.mark.parametrize(
    "options", [{"patch": 5}, {"heads": 3}, {"norm_at": "conv"}, {"depth": 0}, {"init": "zero"}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="Fix"):
        build(**options)


@pytest.mark.parametrize(("rank", "shape"), [(0, (5, 3)), (1, (5, 4, 3)), (2, (5, 3, 4, 4))])
def test_tanh_and_erf_are_their_formulas(rank: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    gamma, beta = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.5, 0.0, -0.5]).double()
    by_channel = (3, 1, 1) if rank == 2 else (3,)
    for kind, function in ((DynamicTanh, torch.tanh), (DynamicErf, torch.erf)):
        layer = kind(3, rank, alpha=0.8).double()
        torch.testing.assert_close(layer(x), function(0.8 * x))
        shift = 0.0
        with torch.no_grad():
            layer.weight.copy_(gamma.view(by_channel))  # type: ignore[union-attr]
            layer.bias.copy_(beta.view(by_channel))  # type: ignore[union-attr]
            if isinstance(layer, DynamicErf):
                shift = 0.3
                layer.shift.fill_(shift)
        expected = gamma.view(by_channel) * function(0.8 * x + shift) + beta.view(by_channel)
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
        bare = kind(3, rank, affine=False).double()
        torch.testing.assert_close(bare(x), function(0.5 * x))
        assert {name for name, _ in bare.named_parameters()} <= {"alpha", "shift"}


def test_alpha_is_an_option() -> None:
    assert build("dyt").norm.alpha.item() == 0.5  # type: ignore[union-attr]
    assert build("derf", norm_options={"alpha": 2.0}).norm.alpha.item() == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("alpha", [math.inf, "1", True])
def test_alpha_that_is_no_finite_number_is_refused(alpha: object) -> None:
    with pytest.raises(OptionError, match="a finite start for alpha"):
        build("dyt", norm_options={"alpha": alpha})


def test_noise_shifts_a_channel_for_all_samples_of_a_step() -> None:
    torch.manual_seed(0)
    noise, x = ShiftingNoise(), torch.randn(64, 5, 8, 8)
    first, second = noise(x), noise(x)
    assert torch.equal(noise.eval()(x), x)
    means = torch.stack([(y - x).mean((0, 2, 3)) for y in (first, second)])
    # Bounds of a channel's mean, with the sampling of 64 draws and of the images around it.
    assert means.abs().max() < 0.6 and (means[0] - means[1]).abs().max() > 0.1
    ratio = first.flatten(1).std() / x.flatten(1).std()
    assert 1.0 < ratio < 1.4
    # One sample, one shift and one scale for all positions of a channel.
    residual = first - x * (first[..., :1, :2].diff() / x[..., :1, :2].diff())
    torch.testing.assert_close(residual, residual[..., :1, :1].expand_as(x), atol=1e-2, rtol=0)
