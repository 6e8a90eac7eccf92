"""Pass a scale and shift through an operation, from its input to its output and back.

An operation f passes them if ``f(s·x + t) = s'·f(x) + t'``. Such are: those that only move
elements; averages and other sums whose weights add up to one, where s and t are the same for all
elements that go into one; the maximum of elements, if s is not negative; and functions that do not
change with a positive factor, if there is no shift.

Scales and shifts are tensors of the shape of the value that they belong to, mostly expanded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from normkit.surgery.fold.values import Event, Value

__all__ = ["Affine", "NotExactError", "backward", "expand", "forward", "per_channel"]


class NotExactError(Exception):
    """Raised with the reason where a scale and shift cannot pass."""


class Affine(NamedTuple):
    """Scale and shift of each element of a value."""

    scale: Tensor
    shift: Tensor


def expand(s: Tensor, t: Tensor, shape: tuple[int, ...], axis: int) -> Affine:
    """Return scale and shift per channel as those of each element of a value."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return Affine(s.view(sizes).expand(shape), t.view(sizes).expand(shape))


def per_channel(each: Affine, axis: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel.

    Raises:
        NotExactError: they differ between elements of one channel.
    """
    others = [a for a in range(each.scale.dim()) if a != axis % each.scale.dim()]
    narrow = [_same_along(tensor, others) for tensor in each]
    if narrow[0] is None or narrow[1] is None:
        raise NotExactError("positions of one channel have another scale or shift there")
    return narrow[0].flatten(), narrow[1].flatten()


def _same_along(tensor: Tensor, axes: list[int]) -> Tensor | None:
    """Return one of the slices along ``axes`` if all are equal; None otherwise."""
    for axis in axes:
        first = tensor.narrow(axis, 0, 1)
        if tensor.stride(axis) != 0 and not torch.equal(first.expand_as(tensor), tensor):
            return None
        tensor = first
    return tensor


class _Rule(NamedTuple):
    """Demands of an operation, and the axes over which it combines elements."""

    axes: tuple[int, ...] = ()
    positive: bool = False  # no negative scale
    unshifted: bool = False  # no shift
    why: str = ""  # what it does to shifts


_aten = torch.ops.aten
# Overloads of one name behave alike.
_MOVES = frozenset(
    getattr(_aten, name)
    for name in (
        "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "squeeze",
        "unsqueeze", "expand", "slice", "select", "split", "split_with_sizes", "unbind", "cat",
        "stack", "clone", "alias", "detach", "lift_fresh", "flip", "roll", "pixel_shuffle",
        "pixel_unshuffle", "channel_shuffle", "repeat", "reflection_pad1d", "reflection_pad2d",
        "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    )
)  # fmt: skip
_AVERAGES = {"avg_pool2d": 2, "avg_pool3d": 3, "_adaptive_avg_pool2d": 2,
             "_adaptive_avg_pool3d": 3, "upsample_linear1d": 1, "upsample_bilinear2d": 2,
             "upsample_trilinear3d": 3, "upsample_bicubic2d": 2}  # fmt: skip
_MAXIMA = {"max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "adaptive_max_pool2d": 2,
           "adaptive_max_pool3d": 3}  # fmt: skip
# f(s·x) = s·f(x) for s ≥ 0.
_HOMOGENEOUS = frozenset({"relu", "leaky_relu"})


def _rule(event: Event) -> _Rule | None:
    """Return what an operation that combines elements demands; None for any other."""
    name = event.name
    rank = len(event.inputs[0].shape) if event.inputs else 0
    if name in _MAXIMA:
        return _Rule(_last(rank, _MAXIMA[name]), positive=True)
    if name in _AVERAGES:
        padded = name.startswith("avg_pool") and _pads(event)
        return _Rule(_last(rank, _AVERAGES[name]), unshifted=padded, why="averages zeros too")
    if name in _HOMOGENEOUS:
        return _Rule(positive=True, unshifted=True)
    if name == "mean" and len(event.args) > 1 and event.args[1]:
        return _Rule(tuple(axis % rank for axis in event.args[1]))
    zero = not event.kwargs and (len(event.args) < 3 or event.args[2] == 0)
    if name == "constant_pad_nd" and zero:
        pads = event.args[1]
        axes = [rank - 1 - i for i in range(len(pads) // 2) if any(pads[2 * i : 2 * i + 2])]
        # One that cuts elements off is no different.
        return _Rule(tuple(axes), unshifted=True, why="pads with zeros")
    return None


def _last(rank: int, count: int) -> tuple[int, ...]:
    return tuple(range(rank - count, rank))


def _pads(event: Event) -> bool:
    """Return whether an average pooling counts zeros beyond the border, or divides otherwise."""
    names = [argument.name for argument in event.operation._schema.arguments]
    options = {**dict(zip(names, event.args, strict=False)), **event.kwargs}
    padded = any(options.get("padding") or ()) and options.get("count_include_pad", True)
    return padded or bool(options.get("divisor_override"))


def _is_move(event: Event) -> bool:
    return event.operation.overloadpacket in _MOVES


def _is_addition(event: Event) -> bool:
    same = len({value.shape for value in event.inputs}) == 1 and len(event.inputs) == 2
    plain = event.operation == _aten.add.Tensor and not event.kwargs
    return plain and same and event.inputs[0] is not event.inputs[1]


def _check(event: Event, rule: _Rule, each: Affine) -> None:
    # Of equal elements the first is chosen: where that is asked for, a scale of 0 changes it.
    chosen = any(value.uses or value.seen_by for value in event.outputs[1:])
    if rule.positive and bool((each.scale <= 0 if chosen else each.scale < 0).any()):
        raise NotExactError(f"{event.name} stands between the two, and no negative scale passes it")
    if rule.unshifted and bool((each.shift != 0).any()):
        why = f", which {rule.why}," if rule.why else ""
        raise NotExactError(f"{event.name}{why} stands between the two, and no shift passes it")


def _stops(event: Event) -> NotExactError:
    return NotExactError(f"{event.name} stands between the two")


def forward(event: Event, at: Value, each: Affine) -> Affine:
    """Return scale and shift of the first output of ``event``, given those of its input ``at``.

    Raises:
        NotExactError: they do not pass.
    """
    output = event.outputs[0] if event.outputs else None
    if output is None or output.dtype != at.dtype:
        raise _stops(event)
    if _is_move(event):
        if len(event.outputs) != 1:
            raise NotExactError(f"{event.name} divides its output")
        scale, shift = (
            _elements(event, at, t, fill)[0] for t, fill in zip(each, (1, 0), strict=True)
        )
        return Affine(scale, shift)
    rule = _rule(event)
    if rule is None:
        raise _stops(event)
    _check(event, rule, each)
    return _over(rule, each, output.shape)


def backward(event: Event, at: Value, each: Affine) -> list[tuple[Value, Affine]]:
    """Return scale and shift of each input of ``event``, given those of its output ``at``.

    Raises:
        NotExactError: they do not pass.
    """
    inputs = event.inputs
    if not inputs or any(value.dtype != at.dtype for value in inputs):
        raise _stops(event)
    if _is_move(event):
        return _elements_back(event, at, each)
    if _is_addition(event):
        # The shift comes in once.
        none = torch.zeros((), dtype=each.shift.dtype).expand(each.shift.shape)
        return [(inputs[0], each), (inputs[1], Affine(each.scale, none))]
    rule = _rule(event)
    if rule is None or len(inputs) != 1 or at.index != 0:
        raise _stops(event)
    _check(event, rule, each)
    return [(inputs[0], _over(rule, each, inputs[0].shape))]


def _over(rule: _Rule, each: Affine, shape: tuple[int, ...]) -> Affine:
    """Return values that are the same along the rule's axes, for another size of these."""
    rank = each.scale.dim()
    full = max(rank, len(shape))
    axes = sorted(rule.axes)
    results: list[Tensor] = []
    for tensor in each:
        if rank < full:  # axes that a mean removed
            for axis in axes:
                tensor = tensor.unsqueeze(axis)
        narrow = _same_along(tensor, axes)
        if narrow is None:
            raise NotExactError("what is combined in between has more than one scale or shift")
        if full > len(shape):
            narrow = narrow.squeeze(tuple(axes))
        results.append(narrow.expand(shape))
    return Affine(*results)


def _run(event: Event, replacements: dict[int, Tensor]) -> list[Tensor]:
    """Run an operation on other tensors."""
    args, kwargs = tree_map(
        lambda leaf: replacements[id(leaf)] if isinstance(leaf, Value) else leaf,
        (event.args, event.kwargs),
    )
    operation = event.operation
    if operation.overloadpacket == _aten._reshape_alias:  # which takes the strides of its result
        operation, args = _aten.reshape.default, args[:2]
    output = operation(*args, **kwargs)
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _elements(event: Event, at: Value, tensor: Tensor, fill: float) -> list[Tensor]:
    """Move the elements of one input as ``event`` does; those of others are ``fill``."""
    others = {id(v): torch.full(v.shape, fill, dtype=tensor.dtype) for v in event.inputs}
    if any(v.dtype != at.dtype for v in event.inputs):  # an index
        raise _stops(event)
    # Densely: a view has to fit the strides.
    return _run(event, {**others, id(at): tensor.contiguous()})


def _elements_back(event: Event, at: Value, each: Affine) -> list[tuple[Value, Affine]]:
    """Return scale and shift of all inputs of an operation that moves elements."""
    # Numbers of the elements, moved as they are; float64 holds them exactly.
    numbers, start = {}, 0
    for value in event.inputs:
        count = _count(value.shape)
        numbers[id(value)] = torch.arange(start, start + count, dtype=torch.float64).view(
            value.shape
        )
        start += count
    place = _run(event, numbers)[at.index].flatten().long()
    flat: list[Tensor] = []
    for tensor, fill in zip(each, (1.0, 0.0), strict=True):
        spread = torch.full((start,), fill, dtype=tensor.dtype)
        spread[place] = tensor.flatten()
        if not torch.equal(spread[place], tensor.flatten()):
            raise NotExactError(f"{event.name} between the two repeats elements")
        flat.append(spread)
    result, begin = [], 0
    for value in event.inputs:
        end = begin + _count(value.shape)
        result.append((value, Affine(*(t[begin:end].view(value.shape) for t in flat))))
        begin = end
    return result


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
