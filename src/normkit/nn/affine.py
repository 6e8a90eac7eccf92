"""Parameters that a layer's γ and β are, or are computed from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["AFFINE", "sources", "why_not_movable"]

# Names of γ and β in tables, and of their tensors.
AFFINE = {"γ": "weight", "β": "bias"}

# What torch.nn.utils appends: prune and spectral_norm, weight_norm.
_ENDINGS = ("_orig", "_g", "_v")


def sources(layer: nn.Module, name: str) -> list[Parameter] | None:
    """Return the parameters that a tensor of ``layer`` is, or is computed from.

    None where they are not to be found in the layer, as in a flat parameter of FSDP.

    >>> from torch.nn.utils import prune
    >>> layer = prune.identity(nn.BatchNorm1d(2), "weight")
    >>> sources(layer, "weight")[0] is layer.weight_orig
    True
    """
    parameter = layer._parameters.get(name)
    if parameter is not None:
        return [parameter]
    if is_parametrized(layer, name):
        return list(layer.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    computed = [layer._parameters.get(name + end) for end in _ENDINGS]
    if any(p is not None for p in computed):
        return [p for p in computed if p is not None]
    value = getattr(layer, name, None)
    return None if isinstance(value, Tensor) and value.requires_grad else []


def why_not_movable(layer: nn.Module) -> str | None:
    """Return why γ and β of ``layer`` cannot go to another layer or place; None if they can."""
    for label, name in AFFINE.items():
        parameter = layer._parameters.get(name)
        if parameter is None and sources(layer, name) != []:
            return f"its {label} is computed from other parameters, as by pruning"
        # A parameter of FSDP2 is a DTensor, and one of FSDP marked.
        if hasattr(parameter, "device_mesh") or getattr(parameter, "_fsdp_flattened", False):
            return "sharded: convert the model first, then shard it"
    return None
