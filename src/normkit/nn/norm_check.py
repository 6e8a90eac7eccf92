"""Compare a formula with the ``forward`` of the layer that it is said to describe.

On copies of the layer with small random tensors on the CPU: outputs, gradients and updated
statistics, in training and evaluation, at variances of the size of ε too, where its place shows.
"""

from __future__ import annotations

import contextlib
import warnings
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.activations import act_of_module, has_hooks
from normkit.nn.foreign import compute
from normkit.nn.frozen import FrozenBatchNorm
from normkit.nn.norm_formula import RANKS, NormSpec

__all__ = ["why_differs"]

# Many of these layers compute in float32 whatever the type of their input.
OUTPUT, GRADIENT = 1e-5, 1e-4
# In bfloat16, where results are rounded in between or not.
HALF = 0.05

# Sizes up to which layers are compared one by one.
SMALL = 8
_NO_OPTIONS = {*vars(nn.Module()), "_requested_mode", "_stats_updated", "num_features",
               "num_channels"}  # fmt: skip

_known: dict[Any, str | None] = {}


class _Marker(nn.Module):
    """Stands for a submodule that may be random or have parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.7 + 0.2 * x.tanh()


def why_differs(layer: nn.Module, cls: type[nn.Module], spec: NormSpec) -> str | None:
    """Return how the ``forward`` of ``cls`` differs from ``spec`` on ``layer``; None if it agrees.

    Each class is compared once for each set of attributes, and each layer anew where attributes
    cannot be compared themselves.
    """
    try:
        key = cls, cls.forward, spec, _settings(layer)
    except TypeError:
        return _compare(layer, cls, spec)
    if key not in _known:
        _known[key] = _compare(layer, cls, spec)
    return _known[key]


def _settings(layer: nn.Module) -> Any:
    """Return what ``forward`` may depend on: options, numbers of axes, kinds of submodules.

    Layers of other sizes compute the same, apart from very small ones.
    """
    values = [
        (name, _as_key(value)) for name, value in vars(layer).items() if name not in _NO_OPTIONS
    ]
    tensors = [
        (name, None if t is None else tuple(min(size, SMALL) for size in t.shape))
        for table in (layer._parameters, layer._buffers)
        for name, t in table.items()
    ]
    children = [
        (name, type(child), () if child is None else _settings(child))
        for name, child in layer._modules.items()
    ]
    return tuple(values), tuple(tensors), tuple(children)


def _as_key(value: Any) -> Any:
    """Return a value that equals that of another layer only where both mean the same.

    Raises:
        TypeError: there is none, as of a tensor or an object that may change.
    """
    if isinstance(value, dict):
        return tuple((_as_key(key), _as_key(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_as_key, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_as_key, value))
    # A key holds its values, so that no other object gets their identity.
    plain = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device,
             torch.memory_format, torch.Size, type, FunctionType, BuiltinFunctionType)  # fmt: skip
    if not isinstance(value, (*plain, Enum)):
        raise TypeError(type(value).__name__)
    return type(value), value


def _compare(layer: nn.Module, cls: type[nn.Module], spec: NormSpec) -> str | None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Of a layer that draws random numbers, nobody shall notice that it was compared.
        stack.enter_context(torch.random.fork_rng(devices=()))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        try:
            for training in (True, False):
                if (why := _differs(layer, cls, spec, training)) is not None:
                    return why
            if spec.like_torch:
                return _differs_in_types(layer, cls, spec)
        except Exception as error:
            return f"cannot be compared with the formula: {type(error).__name__}: {error}"
    return None


def _differs(layer: nn.Module, cls: type[nn.Module], spec: NormSpec, training: bool) -> str | None:
    x, scale = _input(layer, spec)
    results: list[Any] = []
    strides: list[Any] = []
    for ours in (False, True):
        copy = _copy(layer, cls, spec, scale, training, torch.float64)
        at = x.clone().requires_grad_()
        y = compute(copy, spec, at) if ours else cls.forward(copy, at)
        if y is None:
            return "has no form that is computed here"
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            return "returns something else than a tensor like its input"
        strides.append(y.stride())
        weighted = (y * _random(x.shape, 3)).sum()
        parameters = [p for p in copy._parameters.values() if p is not None and p.requires_grad]
        leaves = [at, *parameters]
        used = torch.autograd.grad(weighted, leaves, allow_unused=True)
        pairs = zip(leaves, used, strict=True)
        grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in pairs]
        per_channel = scale.flatten() if spec.has_moments else torch.ones(())
        updated = [
            b.double() / per_channel ** (2 if "var" in name else 1) if b.is_floating_point() else b
            for name, b in copy._buffers.items()
            if b is not None
        ]
        results.append(((y,), (grads[0] * scale, *grads[1:]), updated))
    # Of a size of one every stride is right.
    if x.dim() == 4 and x.shape[1] > 1 and strides[0] != strides[1]:
        return "returns another memory format than the formula known for it"
    names = ("outputs", OUTPUT), ("gradients", GRADIENT), ("running statistics", OUTPUT)
    for (name, limit), theirs, others in zip(names, *results, strict=True):
        for a, b in zip(theirs, others, strict=True):
            if not torch.allclose(a.double(), b.double(), rtol=limit, atol=limit):
                mode = "training" if training else "evaluation"
                return f"gives other {name} in {mode} than the formula known for it"
    return None


def _differs_in_types(layer: nn.Module, cls: type[nn.Module], spec: NormSpec) -> str | None:
    """Compare inputs of another type than γ, and autocast."""
    x, scale = _input(layer, spec)
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)):
        copy = _copy(layer, cls, spec, scale, False, torch.float32)
        at = x.to(dtype)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            try:
                theirs = cls.forward(copy, at)
            except Exception:  # what it does not take, nothing can differ from
                continue
            ours = compute(copy, spec, at)
        if ours is None or ours.dtype != theirs.dtype:
            return "treats autocast in its own way"
        if not torch.allclose(ours.float(), theirs.float(), rtol=HALF, atol=HALF):
            return "treats half types in its own way"
    return None


def _random(shape: Any, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _input(layer: nn.Module, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """Return an input and the scale of its values, pool by pool: the deviation √ε, 1 and 10."""
    eps = getattr(layer, spec.eps) if isinstance(spec.eps, str) else spec.eps
    sizes = (float(eps or 1e-6) ** 0.5, 1.0, 10.0)
    weight = None if spec.weight is None else getattr(layer, spec.weight)
    ranks = RANKS.get(spec.layer)
    if ranks is None:
        shape = getattr(layer, spec.shape) if spec.shape else None
        last = tuple(shape or (() if weight is None else weight.shape) or (16,))
        full: tuple[int, ...] = (3, 2, *last)
    else:
        channels = getattr(layer, "num_channels", None) if weight is None else weight.numel()
        if channels is None and spec.has_moments and layer._buffers.get("running_mean") is not None:
            channels = layer._buffers["running_mean"].numel()  # type: ignore[union-attr]
        channels = channels or getattr(layer, "num_features", None) or layer.normalized_shape[0]  # type: ignore[index]
        full = (3, int(channels), 4, 5, 2)[: max(3, ranks[0])]
    axis = 1 if spec.has_moments else 0
    size = torch.tensor([sizes[i % 3] for i in range(full[axis])], dtype=torch.float64)
    scale = size.reshape([-1 if i == axis else 1 for i in range(len(full))])
    return (_random(full, 0) + 0.5) * scale, scale


def _copy(
    layer: nn.Module,
    cls: type[nn.Module],
    spec: NormSpec,
    scale: Tensor,
    training: bool,
    dtype: torch.dtype,
) -> nn.Module:
    """Return a layer of class ``cls`` with the attributes of ``layer`` and other tensors."""
    other = object.__new__(cls)
    state = {**vars(layer), "training": training, "_parameters": {}, "_buffers": {}}
    for i, (name, p) in enumerate(layer._parameters.items()):
        values = None if p is None else (1 + 0.3 * _random(p.shape, 10 + i)).to(dtype)
        learns = not issubclass(spec.layer, FrozenBatchNorm)
        state["_parameters"][name] = None if values is None else nn.Parameter(values, learns)
    for i, (name, b) in enumerate(layer._buffers.items()):
        if b is None or not b.is_floating_point():
            state["_buffers"][name] = None if b is None else torch.zeros(b.shape, dtype=b.dtype)
            continue
        values = 1 + 0.3 * _random(b.shape, 20 + i).tanh()
        if name.startswith("running"):
            values = values * scale.flatten() ** (2 if "var" in name else 1)
        state["_buffers"][name] = values.to(dtype)
    state["_modules"] = {
        name: child if child is None or _is_plain(child) else _Marker()
        for name, child in layer._modules.items()
    }
    object.__setattr__(other, "__dict__", state)
    return other


def _is_plain(child: nn.Module) -> bool:
    known = type(child) is nn.Identity or act_of_module(child) is not None
    return known and not has_hooks(child)
