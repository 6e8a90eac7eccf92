"""Layers that a scale and shift can be merged into, after them or before them.

``A(x) = W·x + b`` takes both: ``s·A(x) + t`` has the weight ``s·W`` and the bias ``s·b + t``, and
``A(s·x + t)`` has ``W·s`` and ``b + W·t``, where the latter is the same at every position. With
padding it is not: the border is padded with zeros and not with what t would make of them.

Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from normkit.core.activations import has_hooks
from normkit.nn.scale import Scale
from normkit.nn.stats_spec import has_own_forward, stats_spec
from normkit.surgery.fold.norms import channel_axis, is_candidate
from normkit.surgery.fold.operations import Affine, NotExactError, per_channel
from normkit.surgery.fold.values import Event, Recording, Value

__all__ = ["Merged", "after", "before", "is_host", "tensor_table"]

_NORMS = (nn.GroupNorm, nn.LayerNorm, _NormBase, Scale)


class Merged(NamedTuple):
    """Weight and bias of a layer after a merge, in float64; None stays None."""

    weight: Tensor
    bias: Tensor | None


def is_host(module: nn.Module) -> bool:
    """Return whether something could be merged into a layer of this class.

    >>> is_host(nn.Conv1d(1, 1, 1)), is_host(nn.ReLU())
    (True, False)
    """
    return isinstance(module, (_ConvNd, nn.Linear, *_NORMS)) or is_candidate(module)


def tensor_table(module: nn.Module, name: str) -> dict[str, Any]:
    """Return the dictionary of ``module`` that holds its tensor ``name``, or will hold it."""
    buffers: dict[str, Any] = module._buffers
    constant = name in buffers or ("weight" in buffers and name not in module._parameters)
    return buffers if constant else module._parameters


def after(call: Event, each: Affine, recording: Recording, owners: dict[int, int]) -> Merged:
    """Merge the scale and shift of a call's output into its layer.

    Args:
        call: the call of the layer.
        each: scale and shift of each element of its output.
        recording: the pass, which tells who else uses the weights.
        owners: how many places of the model each tensor has, by its identity.

    Raises:
        NotExactError: it cannot be.
    """
    module = _checked(call, recording, owners)
    s, t = per_channel(each, _output_axis(module, call.outputs[0]))
    weight, bias = _tensors(module, s)
    b = torch.zeros_like(s) if bias is None else bias
    if isinstance(module, _ConvTransposeNd):
        per_output = s.view(module.groups, 1, -1, *[1] * _spatial(module))
        scaled = _by_group(weight, module.groups) * per_output
        return Merged(scaled.reshape(weight.shape), s * b + t)
    return Merged(weight * s.view(-1, *[1] * (weight.dim() - 1)), s * b + t)


def before(call: Event, each: Affine, recording: Recording, owners: dict[int, int]) -> Merged:
    """Merge the scale and shift of a call's input into its layer; see :func:`after`."""
    module = _checked(call, recording, owners)
    if not isinstance(module, (_ConvNd, nn.Linear)):
        raise NotExactError(f"{call.name} is no convolution or linear layer")
    linear = isinstance(module, nn.Linear)
    s, t = per_channel(each, -1 if linear else -_spatial(module) - 1)
    weight, bias = _tensors(module, s)
    if bool((t != 0).any()) and (why := _why_uneven(module)) is not None:
        raise NotExactError(f"{call.name} {why}, which a shift does not pass")
    groups = module.groups if isinstance(module, _ConvNd) else 1
    ones = [1] * (weight.dim() - 2)
    transposed = isinstance(module, _ConvTransposeNd)
    # (groups, out, in, *), in each group.
    grouped = _by_group(weight, groups)
    per_input = s.view(groups, 1, -1, *ones)
    if transposed:
        per_input = per_input.transpose(1, 2)
    scaled = (grouped * per_input).reshape(weight.shape)
    if not bool((t != 0).any()):
        return Merged(scaled, bias)
    shift = t.view(groups, 1, -1, *ones)
    added = grouped * (shift.transpose(1, 2) if transposed else shift)
    added = added.sum([1 if transposed else 2, *range(3, added.dim())]).flatten()
    return Merged(scaled, added if bias is None else bias + added)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _spatial(module: nn.Module) -> int:
    return len(module.kernel_size)  # type: ignore[arg-type]


def _output_axis(module: nn.Module, output: Value) -> int:
    if isinstance(module, _ConvNd):
        return -_spatial(module) - 1
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        return -1
    return channel_axis(module, len(output.shape))


def _tensors(module: nn.Module, s: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in float64; ones where a normalization learns no weight."""
    weight, bias = (tensor_table(module, name).get(name) for name in ("weight", "bias"))
    wide = torch.ones_like(s) if weight is None else weight.detach().cpu().double()
    return wide, None if bias is None else bias.detach().cpu().double()


def _checked(call: Event, recording: Recording, owners: dict[int, int]) -> nn.Module:
    """Return the layer of a call if its weights may be changed.

    Raises:
        NotExactError: they may not, or are not its own.
    """
    module, name = call.module, call.name
    assert module is not None
    why = _why_not_host(module)
    if why is None and len(call.inputs) != 1:
        why = "is given more than one tensor"
    if why is None and (len(call.outputs) != 1 or call.outputs[0].maker is not call):
        why = "returns something else than one new tensor"
    for key in ("weight", "bias"):
        tensor = tensor_table(module, key).get(key)
        if tensor is None or why is not None:
            continue
        users = recording.users.get(id(tensor), set())
        if users - {id(module)}:
            why = f"has a {key} that is used elsewhere too"
        elif not users and id(tensor) in owners:
            why = f"is called with another {key} than its own"
        elif owners.get(id(tensor), 0) > 1:
            why = f"shares its {key} with another layer"
        elif type(tensor) not in (Tensor, nn.Parameter):
            why = f"has a {key} of class {type(tensor).__name__}"
    if why is None and isinstance(module, _ConvNd) and _changes_forward(module):
        why = _why_not_plain(call, module)
    if why is not None:
        raise NotExactError(f"{name} {why}")
    return module


def _why_not_host(module: nn.Module) -> str | None:
    """Return why nothing is merged into ``module``, whatever it is given; None if it may be."""
    if not is_host(module):
        return f"is a {type(module).__name__}, which takes no scale and shift"
    if has_hooks(module):
        return "has hooks, or its forward was replaced"
    if is_parametrized(module):
        return "has weights that are parametrized"
    for key in ("weight", "bias"):
        if key not in module._parameters and key not in module._buffers:
            return f"has a {key} that is computed, as by pruning or weight normalization"
    if isinstance(module, _ConvNd):
        return None
    if isinstance(module, nn.Linear):
        return None if type(module).forward is nn.Linear.forward else "has its own forward"
    if has_own_forward(module):
        return "has its own forward"
    if getattr(module, "act", None) is not None:
        return "computes an activation too"
    if module.training and stats_spec(module) is not None:
        return "is in training mode"
    if len(getattr(module, "normalized_shape", (1,))) != 1:
        return "normalizes over several axes, each position with its own weight"
    weight = tensor_table(module, "weight").get("weight")
    if weight is not None and weight.dim() != 1:
        return "has several weights for a channel"
    return None


def _changes_forward(module: _ConvNd) -> bool:
    cls = type(module)
    defined = (cls.forward, getattr(cls, "_conv_forward", None))
    return not all(f is None or f.__module__.startswith("torch.nn.modules.") for f in defined)


def _why_not_plain(call: Event, module: _ConvNd) -> str | None:
    """Return why a convolution with its own forward is more than one; None if it is not."""
    last = call.inner[-1] if call.inner else None
    plain = last is not None and last.operation == torch.ops.aten.convolution.default
    if last is None or not plain or call.outputs[0] is not last.outputs[0]:
        return "has its own forward, which does not end in the convolution"
    # Whether it asks for a bias where it is None, the check of the fold shows.
    weight = last.args[1]
    plain = isinstance(weight, Value) and weight.tensor_id == id(module.weight)
    return None if plain else "has its own forward, which computes its weights"


def _why_uneven(module: nn.Module) -> str | None:
    """Return why a shift of the input adds more to some positions of the output than to others."""
    if isinstance(module, nn.Linear):
        return None
    assert isinstance(module, _ConvNd)
    kernels = [k > 1 for k in module.kernel_size]
    if isinstance(module, _ConvTransposeNd):
        one = not any(kernels) and all(s == 1 for s in module.stride)
        plain = one and not any((*_numbers(module.padding), *module.output_padding))
        return None if plain else "covers some positions more often than others"
    if _changes_forward(module):
        return "may pad with zeros"
    if module.padding_mode != "zeros" or module.padding == "valid":
        return None
    pads = any(kernels) if module.padding == "same" else any(_numbers(module.padding))
    return "pads with zeros" if pads else None


def _numbers(padding: Any) -> tuple[int, ...]:
    return tuple(padding) if isinstance(padding, (tuple, list)) else (padding,)
