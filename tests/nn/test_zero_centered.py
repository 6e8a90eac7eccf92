"""RMS normalization whose weight is centred at zero, as the models that use it compute it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.core import reference

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


class Gemma(nn.Module):
    """transformers' GemmaRMSNorm, by its formula."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        z = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (z * (1.0 + self.weight.float())).type_as(x)


@pytest.mark.parametrize("of_layer", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("of_input", [F32, BF16, F16], ids=str)
def test_result_and_gradients_are_those_of_gemma(
    of_layer: torch.dtype, of_input: torch.dtype
) -> None:
    theirs, ours = Gemma(48, of_layer), nk.ZeroCenteredRMSNorm(48, dtype=of_layer)
    nn.init.normal_(theirs.weight, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x = (torch.randn(5, 9, 48) * 3).to(of_input).requires_grad_()
    dy = torch.randn_like(x)
    a, b = theirs(x), ours(x)
    assert b.dtype == a.dtype == of_input
    # In a half type both round one float32 once, so next to nothing is left to differ.
    rounding = {F32: 1e-6, BF16: 0.008, F16: 0.001}[of_input]
    torch.testing.assert_close(b, a, rtol=rounding, atol=rounding)
    assert of_input == F32 or float((a != b).float().mean()) < 0.01
    for got, expected, leaf in zip(
        torch.autograd.grad(b, [x, ours.weight], dy),
        torch.autograd.grad(a, [x, theirs.weight], dy),
        (of_input, of_layer),
        strict=True,
    ):
        assert got.dtype == leaf
        size = float(expected.abs().max())
        rounding = {F32: 1e-6, BF16: 0.008, F16: 0.001}[leaf]
        torch.testing.assert_close(got, expected, rtol=2 * rounding, atol=rounding * size)


def test_a_weight_near_zero_keeps_its_digits_in_a_half_type() -> None:
    """1 + w in bfloat16 would be 1: the sum is taken in float32."""
    layer = nk.ZeroCenteredRMSNorm(16, dtype=BF16)
    nn.init.constant_(layer.weight, 1e-3)
    x = torch.randn(4, 16)
    truth = reference.zero_centered_rms_norm(x, 1, layer.weight.detach())
    torch.testing.assert_close(layer(x).detach(), truth.float(), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(layer(x), nk.RMSNorm(16, eps=1e-6)(x), rtol=5e-4, atol=0)


def test_weight_decay_pulls_to_the_identity() -> None:
    layer = nk.ZeroCenteredRMSNorm(8)
    nn.init.normal_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(0)
    x = torch.randn(4, 8)
    torch.testing.assert_close(layer(x), nk.RMSNorm(8, eps=1e-6)(x))


def test_is_no_rms_norm_for_tools_that_multiply_by_weight() -> None:
    layer = nk.ZeroCenteredRMSNorm(8)
    assert not isinstance(layer, nn.RMSNorm)
    assert list(layer.state_dict()) == ["weight"]
    model = nn.Sequential(layer, nn.LayerNorm(8))
    handle = nk.accelerate(model)
    assert [row.name for row in handle.changed] == ["1"]
    assert type(model[0]) is nk.ZeroCenteredRMSNorm


def test_parametrized_weight() -> None:
    layer = nk.ZeroCenteredRMSNorm(8)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    nn.init.normal_(layer.parametrizations.weight.original)
    x = torch.randn(4, 8)
    truth = reference.zero_centered_rms_norm(x, 1, layer.weight)
    torch.testing.assert_close(layer(x).double(), truth, rtol=1e-5, atol=1e-5)


def test_nested_tensors() -> None:
    layer = nk.ZeroCenteredRMSNorm(4, act="relu")
    nn.init.normal_(layer.weight)
    parts = [torch.randn(n, 4) for n in (2, 3)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for got, part in zip(layer(x).unbind(), parts, strict=True):
        torch.testing.assert_close(got, layer(part))
