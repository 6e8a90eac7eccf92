"""Random programs of operations around norms: gradients to the last bit, or both raise."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.compat import release
from normkit.kernels import cpu

pytestmark = [
    pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built"),
    pytest.mark.skipif(release(torch.__version__) < (2, 8), reason="needs torch 2.8"),
]

SHAPE = (2, 6, 5, 5)
ACTS = [F.relu, F.relu_, F.silu, F.gelu, F.hardtanh, F.hardswish, F.leaky_relu, F.leaky_relu_,
        F.relu6, lambda y: F.silu(y, inplace=True), lambda y: F.relu6(y, inplace=True),
        lambda y: F.hardswish(y, inplace=True)]  # fmt: skip


class Program(nn.Module):
    """A sequence of operations on a few values, drawn by its seed, the same in every call."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.length = seed, 2 + seed % 11
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(4))
        acts = [None, "relu", "silu", None]
        self.norms = nn.ModuleList(nk.BatchNorm2d(6, act=act) for act in acts)  # type: ignore[arg-type]
        self.linear = nn.Linear(5, 5)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.uniform_(-2, 2)
                norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        drawn = random.Random(self.seed)
        values = [x * 1]
        for _ in range(self.length):
            i = drawn.randrange(len(values))
            j = drawn.randrange(len(values))
            values.append(self._operation(drawn, values[i], values[j]))
            if len(values) > 4:
                del values[drawn.randrange(4)]
        return torch.stack(values).sum(0)

    def _operation(self, drawn: random.Random, a: Tensor, b: Tensor) -> Tensor:
        kind = drawn.choice(
            ["norm", "norm", "norm", "conv", "conv", "act", "act", "add_", "add_", "add",
             "residual", "no_grad", "mul_", "view", "part", "linear", "detached", "block"]
        )  # fmt: skip
        norm, conv = drawn.choice(self.norms), drawn.choice(self.convs)
        act = drawn.choice(ACTS)
        if kind == "norm":
            return norm(conv(a))
        if kind == "conv":
            return conv(a)
        if kind == "act":
            return act(a)
        if kind == "add_":
            return a.add_(b, alpha=drawn.choice([1, 1, 1, 2]))
        if kind == "add":
            return a + b
        if kind == "residual":
            return norm(a, b)
        if kind == "no_grad":
            with torch.no_grad():
                return a.mul_(1.5)
        if kind == "mul_":
            return a.mul_(0.5)
        if kind == "view":
            return act(a.view(2, 6, 25)).view(SHAPE)
        if kind == "part":
            act(a[:, :3])
            return a
        if kind == "linear":
            return self.linear(a)
        if kind == "detached":
            return a + b.detach()
        y = norm(conv(a))
        y += b
        return act(y)


def outcome(model: Program, x: Tensor) -> list[Tensor] | None:
    """Return gradients, or None where autograd refuses what the program does in place."""
    x = x.clone().requires_grad_()
    try:
        y = model(x)
        return list(
            torch.autograd.grad(
                y.square().sum(), [x, *model.parameters()], allow_unused=True,
                materialize_grads=True,
            )
        )  # fmt: skip
    except RuntimeError:
        return None


def check(seed: int) -> str:
    """Compare a program with and without, and return what came of it."""
    torch.manual_seed(seed)
    model, x = Program(seed), torch.randn(SHAPE)
    results = [outcome(model, x)]
    for blocks in (False, True):
        for norm in model.norms:
            norm.reset_running_stats()
        handle = nk.save_memory(model, blocks=blocks)
        results.append(outcome(model, x))
        handle.undo()
    plain = results[0]
    for after in results[1:]:
        # Computed again from what nothing changed, it may be right where autograd has to refuse.
        if plain is None or after is None:
            continue
        for a, b in zip(plain, after, strict=True):
            assert torch.equal(a, b) or (a.isnan().any() and b.isnan().any()), seed
    return "refused" if plain is None else "refused by us" if None in results else "same"


def test_random_programs() -> None:
    counts: dict[str, int] = {}
    for seed in range(250):
        what = check(seed)
        counts[what] = counts.get(what, 0) + 1
    assert counts["same"] > 80
