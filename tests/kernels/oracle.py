"""The oracle's output and gradients for whatever the kernels compute, in float64."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from normkit.core import reference
from normkit.core.formula import Spec

Results = dict[str, Tensor]


def by_oracle(spec: Spec, tensors: list[Tensor | None], dy: Tensor) -> Results:
    """Compute the output and the gradients of all ``tensors``: x, weight, bias, residual."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    x, w, b, r = wide
    assert x is not None
    pool, eps = spec.pool, spec.eps
    if not spec.centred:
        y = _rms(x, w, b, spec)
    elif pool.over == "ghost":
        y = reference.ghost_batch_norm(x, [len(x) // pool.groups] * pool.groups, w, b, eps)
    elif pool.over == "group":
        y = reference.group_norm(x, pool.groups, w, b, eps)
    else:
        oracle = {"batch": reference.batch_norm, "position": reference.layer_norm_2d}[pool.over]
        y = oracle(x, w, b, eps)
    y = y if r is None else y + r
    if spec.act is not None:
        acts = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu}
        slope = spec.act.slope
        y = F.leaky_relu(y, slope) if spec.act.name == "leaky_relu" else acts[spec.act.name](y)
    y.backward(dy.double())
    return results(y, wide)


def pooled(x: Tensor, spec: Spec) -> tuple[Tensor, tuple[int, ...]]:
    """The numbers that share one mean as rows; the axes of the view that they came from."""
    x4 = x.reshape(spec.pool.view(x.shape[0], x.shape[1], x[0, 0].numel()))
    order = tuple(d for d in range(4) if d not in spec.pool.dims) + spec.pool.dims
    return x4.permute(order).flatten(4 - len(spec.pool.dims)), order


def _rms(x: Tensor, w: Tensor | None, b: Tensor | None, spec: Spec) -> Tensor:
    rows, order = pooled(x, spec)
    view = spec.pool.view(x.shape[0], x.shape[1], x[0, 0].numel())
    y = reference.rms_norm(rows, 1, None, spec.eps).reshape([view[d] for d in order])
    y = y.permute([order.index(d) for d in range(4)]).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = y if w is None else y * w.reshape(shape)
    return y if b is None else y + b.reshape(shape)


def results(y: Tensor, leaves: list[Tensor | None]) -> Results:
    """Name the output and the gradients that a backward pass has left in ``leaves``."""
    names = ("dx", "dweight", "dbias", "dresidual")
    found = {n: t.grad for n, t in zip(names, leaves, strict=True) if t is not None}
    assert all(g is not None for g in found.values())
    return {"y": y.detach()} | {n: g for n, g in found.items() if g is not None}


def terms(spec: Spec, tensors: list[Tensor | None], dy: Tensor) -> dict[str, float]:
    """Sum the magnitudes of what may cancel in each gradient; see ``assert_accurate``."""
    x, weight = tensors[0], tensors[1]
    assert x is not None
    each = float(dy.double().abs().transpose(0, 1).flatten(1).sum(1).max())
    # dx is what is left of γ·r·dz: nothing, in a pool of two values.
    rows, _ = pooled(x.double(), spec)
    var = rows.var(-1, correction=0) if spec.centred else rows.square().mean(-1)
    gamma = 1.0 if weight is None else float(weight.abs().max())
    slope = float((var + spec.eps).rsqrt().max()) * gamma * float(dy.abs().max())
    return {"dweight": each, "dbias": each, "dx": slope}
