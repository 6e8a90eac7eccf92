"""Gradients keep the memory format of what they are gradients of, and can be batched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYERS: dict[str, tuple[Any, Any]] = {
    "rms, sample": (nk.RMSNorm((4, 3, 5)), nn.RMSNorm((4, 3, 5))),
    "rms, last axis": (nk.RMSNorm(5), nn.RMSNorm(5)),
    "layer, sample": (nk.LayerNorm((4, 3, 5)), nn.LayerNorm((4, 3, 5))),
    "layer, volume": (nk.LayerNorm((4, 2, 3, 5)), nn.LayerNorm((4, 2, 3, 5))),
    "batch": (nk.BatchNorm2d(4), nn.BatchNorm2d(4)),
    "group": (nk.GroupNorm(2, 4), nn.GroupNorm(2, 4)),
    "instance": (nk.InstanceNorm2d(4), nn.InstanceNorm2d(4)),
}
for pair in LAYERS.values():
    for layer in pair:
        layer.double()


def channels_last(layer: nn.Module) -> Tensor:
    rank = 5 if getattr(layer, "normalized_shape", ()) == (4, 2, 3, 5) else 4
    x = torch.randn((6, 4, 2, 3, 5) if rank == 5 else (6, 4, 3, 5), dtype=torch.float64)
    return x.contiguous(memory_format=FORMATS[rank]).requires_grad_()


@pytest.mark.parametrize("name", LAYERS)
def test_channels_last(name: str) -> None:
    ours, theirs = LAYERS[name]
    x, residual, slope = (channels_last(ours) for _ in range(3))
    tensors = x, residual, *ours.parameters()
    y = ours(x, residual)
    expected = torch.autograd.grad(
        theirs(x) + residual, (x, residual, *theirs.parameters()), slope.detach()
    )
    found = torch.autograd.grad(y, tensors, slope, create_graph=True)
    torch.testing.assert_close(found, expected)
    memory = {"memory_format": FORMATS[x.dim()]}
    for t in (y, found[0], found[1]):
        assert t.is_contiguous(**memory), name
    assert all(t.is_contiguous() for t in found[2:])
    # And once more: the gradient's gradient.
    second = torch.autograd.grad(found[0].pow(2).sum(), (x, slope))
    again = torch.autograd.grad(theirs(x), x, slope, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(again[0].pow(2).sum(), (x, slope)))


@pytest.mark.parametrize("name", ["batch"])
def test_channels_last_without_samples(name: str) -> None:
    for layer in LAYERS[name]:
        x = channels_last(layer).detach()[:0].requires_grad_()
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, torch.empty_like(y))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LAYERS)
def test_batched(name: str) -> None:
    ours, theirs = LAYERS[name]
    x = channels_last(ours)
    slopes = torch.randn(3, *x.shape, dtype=x.dtype)
    found, expected = (
        torch.autograd.grad(layer(t), (t, *layer.parameters()), slopes, is_grads_batched=True)
        # torch.nn's group normalization does not know channels-last there.
        for layer, t in ((ours, x), (theirs, x.detach().contiguous().requires_grad_()))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("batch", "instance")])
def test_batched_without_samples(name: str) -> None:
    ours, theirs = LAYERS[name]
    x = channels_last(ours).detach()[:0].requires_grad_()
    slopes = torch.randn(2, *x.shape, dtype=x.dtype)
    for layer in (ours, theirs):
        grads = torch.autograd.grad(
            layer(x), (x, *layer.parameters()), slopes, is_grads_batched=True
        )
        assert grads[0].shape == slopes.shape
        assert not any(grad.any() for grad in grads[1:])
