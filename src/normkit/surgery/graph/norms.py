"""Normalizations in a graph: which calls they are, and what the fused kernels ask about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from normkit.core.moments import accumulator
from normkit.kernels import fused
from normkit.kernels.fused import Stats

__all__ = ["Norm", "is_norm", "read", "value_of"]

_BATCH = fused.signature("batch", range(2, 33))
_GROUP = fused.signature("group", range(2, 33))
_ROWS = fused.signature("group", range(1, 33), rows=True)
_UNCENTRED_ROWS = fused.signature("group", range(1, 33), centred=False, rows=True)


class Norm(NamedTuple):
    """One normalization of a graph, with the options of :func:`normkit.kernels.fused.layer`.

    Its tensors are nodes of the graph, or None; ``momentum`` and ``eps`` may be numbers too.
    """

    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    mean: fx.Node | None
    var: fx.Node | None
    momentum: fx.Node | float | None
    eps: fx.Node | float | None
    signature: int
    groups: int | None
    shape: tuple[int, ...] | None
    stats: int


def is_norm(node: fx.Node) -> bool:
    """Return True if ``node`` calls one of PyTorch's normalization functions."""
    return node.op == "call_function" and node.target in _READERS


def read(node: fx.Node) -> Norm | str:
    """Return the normalization that ``node`` computes, or why the kernels cannot take it."""
    norm = _READERS[node.target](*node.args, **node.kwargs)
    return norm if isinstance(norm, str) else _why_not(norm) or norm


def value_of(node: object) -> Tensor | None:
    """Return the fake tensor that stands for the value of ``node``; None where it is no tensor."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


# Each has the signature of PyTorch's function of its name.


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Norm | str:
    return _with_stats(
        input, weight, bias, running_mean, running_var, momentum, _BATCH, 1, eps, training
    )


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Norm | str:
    if use_input_stats is True and running_mean is not None:
        return "the kernels do not average the statistics of instances"
    return _with_stats(
        input, weight, bias, running_mean, running_var, momentum, _GROUP, None, eps, use_input_stats
    )


def _group_norm(
    input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Norm | str:
    if type(num_groups) is not int:
        return "its number of groups is no constant"
    return _norm(input, weight, bias, _GROUP, num_groups, None, eps)


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Norm | str:
    return _rows(input, normalized_shape, weight, bias, eps, _ROWS)


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Norm | str:
    return _rows(input, normalized_shape, weight, None, eps, _UNCENTRED_ROWS)


_READERS: dict[Any, Callable[..., Norm | str]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
}


def _with_stats(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: Any, signature: int,
    groups: int | None, eps: Any, from_input: Any,
) -> Norm | str:  # fmt: skip
    """Return a normalization by its input's moments, ``from_input``, or by running statistics."""
    if not isinstance(from_input, bool) or (mean is None) is not (var is None):
        return "where its statistics come from is no constant"
    stats, share = Stats.FIXED, None
    if from_input:
        stats = Stats.NONE if mean is None else Stats.UPDATE
    elif mean is None:
        return "it has no statistics"
    if stats == Stats.UPDATE:
        if not isinstance(momentum, (int, float, fx.Node)):
            return "its momentum is not a number"
        share = _number(momentum)
    norm = _norm(x, weight, bias, signature, groups, None, eps)
    return norm._replace(mean=mean, var=var, momentum=share, stats=stats)


def _rows(x: Any, shape: Any, weight: Any, bias: Any, eps: Any, signature: int) -> Norm | str:
    if not isinstance(shape, (tuple, list)) or any(type(size) is not int for size in shape):
        return "its normalized_shape is no constant"
    return _norm(x, weight, bias, signature, 1, tuple(shape), eps)


def _norm(
    x: Any, weight: Any, bias: Any, signature: int, groups: int | None,
    shape: tuple[int, ...] | None, eps: Any,
) -> Norm:  # fmt: skip
    return Norm(
        x, weight, bias, None, None, None, _number(eps), signature, groups, shape, Stats.NONE
    )


def _number(value: Any) -> Any:
    """Return what the kernels take for a number: a float, or a node that computes one."""
    return float(value) if isinstance(value, int) else value


def _why_not(norm: Norm) -> str | None:
    """Return why the kernels would compute no such call, from the tensors it was recorded with.

    A call that differs from them all the same is refused by the kernels as it comes.
    """
    values = [None if node is None else value_of(node) for node in norm[:5]]
    if any((node is None) is not (t is None) for node, t in zip(norm[:5], values, strict=True)):
        return "nothing is known of its tensors"
    x, weight, bias, mean, _ = values
    assert x is not None
    if any(is_traceable_wrapper_subclass(t) for t in values):
        return "a tensor is of a subclass"
    if x.device.type != "cpu":
        return f"the kernels run on a CPU and its input is on {x.device}"
    # The kernels count the weights and do not look at their shape.
    if norm.shape and any(tuple(t.shape) != norm.shape for t in (weight, bias) if t is not None):
        return "a weight has another shape than normalized_shape"
    if norm.stats == Stats.UPDATE and mean is not None and mean.dtype != accumulator(x.dtype):
        return f"its running statistics are {mean.dtype} and the moments {accumulator(x.dtype)}"
    return None
