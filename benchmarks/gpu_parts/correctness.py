"""Every kind of layer against the reference in float64, in each memory format and type.

The rule of accuracy is that of the tests (tests/tolerances.py): at most twice the error of
PyTorch's kernels, which compute the same by one operation after another, and a few units in the
last place. Results must also be the same, bit for bit, when they are computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from benchmarks.gpu_parts.budget import Budget
from normkit.bench.layers import SeparateModules
from normkit.core import reference
from normkit.kernels.triton import gpu
from normkit.nn.explain import explain
from tests.tolerances import assert_accurate

__all__ = ["KINDS", "check_all"]

TYPES = ("float32", "bfloat16", "float16")
ACTS: tuple[str | None, ...] = ("relu", "silu", None, "gelu", "relu6")
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "relu6": F.relu6,
}  # fmt: skip
_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "relu6": nn.ReLU6,
}  # fmt: skip
# What a kink of an activation is apart from: on which side of it a value falls is for rounding to
# say, and then no gradient is compared there.
_KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0)}
_NEAR = 0.05


class Kind(NamedTuple):
    """A kind of layer: ours, PyTorch's, the reference, and shapes with an odd one among them."""

    ours: Callable[[int, str | None], nn.Module]
    theirs: Callable[[int], nn.Module]
    truth: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


class _ChannelsLast(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class _Parts(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        sizes = nk.GhostBatchNorm2d(1, 2).part_sizes(len(input))
        return torch.cat([super(_Parts, self).forward(part) for part in input.split(sizes)])


_IMAGES = ((5, 6, 7, 9), (2, 64, 33, 17))

KINDS = {
    "BatchNorm1d": Kind(
        lambda c, act: nk.BatchNorm1d(c, act=act), nn.BatchNorm1d, reference.batch_norm,
        ((37, 11), (6, 24, 45)),
    ),
    "BatchNorm2d": Kind(
        lambda c, act: nk.BatchNorm2d(c, act=act), nn.BatchNorm2d, reference.batch_norm, _IMAGES
    ),
    "BatchNorm3d": Kind(
        lambda c, act: nk.BatchNorm3d(c, act=act), nn.BatchNorm3d, reference.batch_norm,
        ((3, 6, 4, 5, 7),),
    ),
    "GhostBatchNorm2d": Kind(
        lambda c, act: nk.GhostBatchNorm2d(c, 2, act=act), _Parts,
        lambda x, w, b: reference.ghost_batch_norm(
            x, nk.GhostBatchNorm2d(1, 2).part_sizes(len(x)), w, b
        ),
        ((6, 6, 7, 9),),
    ),
    "GroupNorm": Kind(
        lambda c, act: nk.GroupNorm(2, c, act=act), lambda c: nn.GroupNorm(2, c),
        lambda x, w, b: reference.group_norm(x, 2, w, b), (*_IMAGES, (1, 64, 40, 40)),
    ),
    "InstanceNorm2d": Kind(
        lambda c, act: nk.InstanceNorm2d(c, affine=True, act=act),
        lambda c: nn.InstanceNorm2d(c, affine=True), reference.instance_norm, _IMAGES,
    ),
    "LayerNorm2d": Kind(
        lambda c, act: nk.LayerNorm2d(c, eps=1e-5, act=act), _ChannelsLast,
        lambda x, w, b: reference.layer_norm_2d(x, w, b, 1e-5), _IMAGES,
    ),
    "LayerNorm": Kind(
        lambda c, act: nk.LayerNorm(c, act=act), nn.LayerNorm,
        lambda x, w, b: reference.layer_norm(x, 1, w, b), ((13, 77), (2, 9, 1024)),
    ),
    "RMSNorm": Kind(
        lambda c, act: nk.RMSNorm(c, eps=1e-5, act=act), lambda c: nn.RMSNorm(c, eps=1e-5),
        lambda x, w, b: reference.rms_norm(x, 1, w, eps=1e-5), ((13, 77), (2, 9, 1024)),
    ),
}  # fmt: skip


# Large enough for the kernels of a GPU that small ones do not reach: groups that fit a tile, long
# rows, sums in several steps.
_LARGE = (
    ("InstanceNorm2d", (64, 64, 14, 14)), ("LayerNorm", (64, 12_000)),
    ("LayerNorm2d", (2, 320, 40, 40)), ("BatchNorm2d", (32, 256, 64, 64)),
    ("GroupNorm", (1, 64, 512, 512)),
)  # fmt: skip


class _Problem(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    dtype: str
    last: bool
    act: str | None
    residual: bool
    training: bool
    far: bool

    def __str__(self) -> str:
        words = [self.kind, "×".join(map(str, self.shape)), self.dtype]
        words += ["channels-last"] * self.last + ["far from zero"] * self.far
        words += [self.act] * (self.act is not None) + ["residual"] * self.residual
        return " ".join(map(str, words)) + ("" if self.training else " evaluation")


def _problems(few: bool, large: bool) -> Iterator[_Problem]:
    """Yield each kind, type and format; activations, residual and the rest take turns."""
    acts, residuals = itertools.cycle(ACTS), itertools.cycle((True, False, False, True))
    for (name, kind), last, dtype in itertools.product(KINDS.items(), (False, True), TYPES):
        shapes = [s for s in kind.shapes if not last or len(s) in (4, 5)]
        for shape in shapes[:1] if few else shapes:
            act, residual = next(acts), next(residuals)
            yield _Problem(name, shape, dtype, last, act, residual, True, False)
        if shapes and name.startswith("BatchNorm") and not few:
            yield _Problem(name, shapes[-1], dtype, last, next(acts), next(residuals), False, False)
        if shapes and dtype == "float32" and not few:
            yield _Problem(name, shapes[-1], dtype, last, None, False, True, True)
    for (name, shape), dtype in itertools.product(_LARGE if large else (), ("float32", "bfloat16")):
        for last in (False, True)[: 2 if len(shape) == 4 else 1]:
            yield _Problem(name, shape, dtype, last, next(acts), False, True, False)


def check_all(device: torch.device, budget: Budget, seconds: float, few: bool) -> dict[str, Any]:
    """Check all problems that the time allows; return how many, by which way, and what failed."""
    problems = list(_problems(few, device.type == "cuda"))
    end = budget.remaining() - seconds
    ways: dict[str, int] = {}
    failures: list[str] = []
    checked = 0
    for problem in problems:
        if budget.remaining() < max(end, 0.0):
            budget.skipped.append(f"correctness: {len(problems) - checked} of {len(problems)}")
            break
        checked += 1
        try:
            with patch.object(gpu, "SMALL", 0):
                way = _check(problem, device)
        except Exception as error:  # one that a kernel raises is no better than a wrong number
            text = " ".join(str(error).split())[:300]
            failures.append(f"{problem}: {type(error).__name__}: {text}")
        else:
            ways[way] = ways.get(way, 0) + 1
            if device.type == "cuda" and way != gpu.TritonGPU.name:
                failures.append(f"{problem}: computed by {way}")
    return {"problems": len(problems), "checked": checked, "ways": ways, "failures": failures}


def _check(problem: _Problem, device: torch.device) -> str:
    """Raise AssertionError where a result is wrong; return the way that computed it."""
    kind, dtype = KINDS[problem.kind], getattr(torch, problem.dtype)
    rows = problem.kind in ("LayerNorm", "RMSNorm")
    channels = problem.shape[-1] if rows else problem.shape[1]
    generator = torch.Generator().manual_seed(0)
    ours = kind.ours(channels, problem.act)
    with torch.no_grad():
        for t in ours.parameters():
            t.copy_(torch.randn(t.shape, generator=generator))
        if not problem.training:
            ours.running_mean.normal_(generator=generator)
            ours.running_var.uniform_(0.5, 2.0, generator=generator)
    bare = kind.theirs(channels)
    if rows:  # PyTorch's kernels for rows want parameters of the input's type
        ours, bare = ours.to(dtype), bare.to(dtype)
    bare.load_state_dict(ours.state_dict())
    activation = None if problem.act is None else _MODULES[problem.act]()
    theirs = SeparateModules(bare, activation).to(device).train(problem.training)
    ours = ours.to(device).train(problem.training)

    def random() -> Tensor:
        t = torch.randn(problem.shape, generator=generator)
        t = (0.1 * t + 1e4 if problem.far else t).to(device, dtype)
        if problem.last:
            last = {4: torch.channels_last, 5: torch.channels_last_3d}[t.dim()]
            t = t.contiguous(memory_format=last)
        return t

    x = random().requires_grad_()
    residual = random().requires_grad_() if problem.residual else None
    way = explain(ours, x, residual)[-1].removesuffix(": used")

    def truth(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
        if problem.training:
            y = kind.truth(x, weight, bias)
        else:
            moments = (bare.running_mean, bare.running_var)
            y = reference.frozen_batch_norm(x, *moments, weight, bias)
        return y if residual is None else y + residual

    weight, bias = ours.weight, getattr(ours, "bias", None)
    with torch.no_grad():
        z = truth(x, residual, weight, bias)
    dy = torch.randn(problem.shape, generator=generator).to(device, dtype)
    for kink in _KINKS.get(problem.act or "", ()):
        dy[(z - kink).abs() < _NEAR] = 0.0

    def exact(*inputs: Any) -> Tensor:
        y = truth(*inputs)
        return y if problem.act is None else _FUNCTIONS[problem.act](y)

    state = {name: t.clone() for name, t in ours.state_dict().items()}
    inputs = (x, residual, weight, bias)
    results = _results(lambda x, r, w, b: ours(x, r), inputs, dy)
    buffers = {name: t.clone() for name, t in ours.named_buffers()}
    ours.load_state_dict(state)
    again = _results(lambda x, r, w, b: ours(x, r), inputs, dy)
    parameters = (theirs.norm.weight, getattr(theirs.norm, "bias", None))
    torchs = _results(lambda x, r, w, b: theirs(x, r), (x, residual, *parameters), dy)
    for name, value in _results(exact, inputs, dy).items():
        assert torch.equal(results[name], again[name]), f"{name} differs from run to run"
        assert_accurate(results[name], value, torchs[name], name)
    if problem.training and problem.kind.startswith("BatchNorm"):
        _check_buffers(x, buffers)
    return way


def _results(
    apply: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], dy: Tensor
) -> dict[str, Tensor]:
    names = ("dx", "dresidual", "dweight", "dbias")
    leaves = {name: t for name, t in zip(names, inputs, strict=True) if t is not None}
    y = apply(*inputs)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def _check_buffers(x: Tensor, buffers: dict[str, Tensor]) -> None:
    wide = x.detach().double().movedim(1, 0).flatten(1)
    size = 0.1 * float(wide.abs().mean())  # of the terms, which all but cancel in the mean
    assert_accurate(buffers["running_mean"], 0.1 * wide.mean(1), None, "running_mean", size)
    assert_accurate(buffers["running_var"], 0.9 + 0.1 * wide.var(1), None, "running_var")
