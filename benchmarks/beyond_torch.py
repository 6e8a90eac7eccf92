"""Layers that torch.nn lacks against what is written by hand for them, in turn in one process.

Times on one thread: evaluation without gradients, and a training step's forward and backward::

    python benchmarks/beyond_torch.py            # or seconds for each case
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.bench.stopwatch import time_interleaved

MASK = torch.arange(200) < torch.linspace(40, 200, 32).int()[:, None]


class Case(NamedTuple):
    """A layer, the formula by hand for the same parameters, an input's shape, further inputs."""

    name: str
    make: Callable[[], Any]
    by_hand: Callable[..., Tensor]
    shape: tuple[int, ...]
    more: dict[str, Tensor] = {}  # noqa: RUF012


def rms(m: Any, x: Tensor) -> Tensor:
    z = x.float()
    z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + m.eps)
    return (z * (1.0 + m.weight.float())).type_as(x)


def response(m: Any, x: Tensor) -> Tensor:
    z = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + m.eps)
    weight, bias, tau = (t.view(1, -1, 1, 1) for t in (m.weight, m.bias, m.tau))
    return torch.max(weight * z + bias, tau)


def switchable(m: Any, x: Tensor) -> Tensor:
    """After the authors' code."""
    n, c, h, w = x.shape
    x = x.view(n, c, -1)
    mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
    mean_ln = mean_in.mean(1, keepdim=True)
    square = var_in + mean_in**2
    var_ln = square.mean(1, keepdim=True) - mean_ln**2
    if m.training:
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = square.mean(0, keepdim=True) - mean_bn**2
        m.running_mean.mul_(0.9).add_(0.1 * mean_bn.detach().flatten())
        m.running_var.mul_(0.9).add_(0.1 * var_bn.detach().flatten())
    else:
        mean_bn, var_bn = m.running_mean.view(1, -1, 1), m.running_var.view(1, -1, 1)
    a, b = torch.softmax(m.mean_weight, 0), torch.softmax(m.var_weight, 0)
    mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
    var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
    x = ((x - mean) / (var + m.eps).sqrt()).view(n, c, h, w)
    return x * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1)


def convolution(m: Any, x: Tensor) -> Tensor:
    """After timm's StdConv2d."""
    rows = m.weight.reshape(1, m.out_channels, -1)
    weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=m.eps)
    return F.conv2d(x, weight.reshape_as(m.weight), m.bias, m.stride, m.padding)


def tokens(m: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """After DiT's modulate."""
    z = F.layer_norm(x, m.normalized_shape, eps=m.eps)
    return z * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def groups(m: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    z = F.group_norm(x, m.num_groups, eps=m.eps)
    return z * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


def masked(axes: tuple[int, ...], parts: int | None = None) -> Callable[..., Tensor]:
    def by_hand(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        shape, one = x.shape, mask.unsqueeze(1).to(x.dtype)
        if not m.training and getattr(m, "running_mean", None) is not None:
            z = F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)
            return z * one
        if parts is not None:
            x, over = x.view(len(x), parts, -1, shape[-1]), one.unsqueeze(1)
        else:
            over = one
        count = over.sum(axes, keepdim=True) * (1 if parts is None else x.shape[2])
        mean = (x * over).sum(axes, keepdim=True) / count
        var = ((x - mean) ** 2 * over).sum(axes, keepdim=True) / count
        if m.training and getattr(m, "running_mean", None) is not None:
            m.running_mean.mul_(0.9).add_(0.1 * mean.detach().flatten())
            m.running_var.mul_(0.9).add_(0.1 * var.detach().flatten())
        z = ((x - mean) / (var + m.eps).sqrt()).view(shape)
        return (z * m.weight.view(1, -1, 1) + m.bias.view(1, -1, 1)) * one

    return by_hand


def pair(n: int, c: int) -> dict[str, Tensor]:
    return {"scale": torch.randn(n, c), "shift": torch.randn(n, c)}


LENGTHS = (32, 128, 200)
CASES = (
    Case("ZeroCenteredRMSNorm", lambda: nk.ZeroCenteredRMSNorm(512), rms, (64, 512)),
    Case("ZeroCenteredRMSNorm", lambda: nk.ZeroCenteredRMSNorm(1024), rms, (4, 512, 1024)),
    Case("FilterResponseNorm2d", lambda: nk.FilterResponseNorm2d(64), response, (16, 64, 56, 56)),
    Case("… learning ε", lambda: nk.FilterResponseNorm2d(64, learn_eps=True),
         lambda m, x: response(m, x), (16, 64, 56, 56)),
    Case("SwitchableNorm2d", lambda: nk.SwitchableNorm2d(64), switchable, (16, 64, 56, 56)),
    Case("WeightStandardizedConv2d", lambda: nk.WeightStandardizedConv2d(64, 64, 3, padding=1),
         convolution, (8, 64, 14, 14)),
    Case("AdaptiveLayerNorm", lambda: nk.AdaptiveLayerNorm(384), tokens, (16, 256, 384),
         pair(16, 384)),
    Case("AdaptiveGroupNorm", lambda: nk.AdaptiveGroupNorm(8, 64), groups, (16, 64, 56, 56),
         pair(16, 64)),
    Case("MaskedBatchNorm1d", lambda: nk.MaskedBatchNorm1d(128), masked((0, 2)), LENGTHS,
         {"mask": MASK}),
    Case("MaskedInstanceNorm1d", lambda: nk.MaskedInstanceNorm1d(128, affine=True), masked((2,)),
         LENGTHS, {"mask": MASK}),
    Case("MaskedGroupNorm", lambda: nk.MaskedGroupNorm(8, 128), masked((2, 3), 8), LENGTHS,
         {"mask": MASK}),
)  # fmt: skip


def evaluation(call: Callable[[Tensor], Tensor], m: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        m.eval()
        with torch.no_grad():
            call(x)

    return run


def step(call: Callable[[Tensor], Tensor], m: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()
    leaves = [x, *m.parameters()]

    def run() -> None:
        m.train()
        y = call(x)
        torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    return run


def main(seconds: float = 3.0) -> None:
    torch.set_num_threads(1)
    print(
        "| layer | input | evaluation, ours / by hand | step, ours / by hand |\n|---|---|---|---|"
    )
    for case in CASES:
        torch.manual_seed(0)
        m, x = case.make(), torch.randn(case.shape)
        cells = [case.name, " × ".join(map(str, case.shape))]
        for make in (evaluation, step):
            sides = {
                "ours": make(lambda x, m=m, more=case.more: m(x, **more), m, x),
                "by hand": make(lambda x, m=m, c=case: c.by_hand(m, x, *c.more.values()), m, x),
            }
            times = time_interleaved(sides, seconds=seconds, min_rounds=20, precision=0.01)
            ms = {side: times.of(side) * 1e3 for side in sides}
            ratio = times.ratio("ours", "by hand")[0]
            cells.append(f"{ms['ours']:.3g} / {ms['by hand']:.3g} ms = {ratio:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
