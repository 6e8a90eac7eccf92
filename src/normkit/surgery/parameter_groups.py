"""Parameters of a model in two groups for an optimizer: with weight decay, and without."""

from __future__ import annotations

import math
import numbers
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from normkit.errors import OptionError, TypeMismatchError, message
from normkit.nn.kinds import kind_of
from normkit.nn.layer import Layer
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.find import unwrap

__all__ = ["parameter_groups"]

# Layers with weights, whatever the name of a subclass says.
WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag)

BIASES = {"bias", "biases"}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    r"""Group the parameters of ``model`` so that only its weights decay, for any optimizer.

    Without decay are γ and β and whatever else normalization layers learn, every bias, and what
    the model itself names in ``no_weight_decay()``, as timm's do. Decay of γ in front of an
    activation shrinks what the layer exists to set; decay of weights in front of a normalization
    acts on the learning rate only.

    Normalization layers are ``torch.nn``'s, this package's, those that ``stats_spec`` knows, and of
    others the vectors of classes with "norm" in their name. A bias is a parameter with that word
    in its name (``in_proj_bias``, ``bias_ih_l0``, ``relative_position_bias_table``). Other vectors,
    such as the scales of LayerScale, decay: recipes differ about them. A parameter in several
    places is listed once, without decay if any of them is of these. All parameters are in the
    groups, frozen ones too, in the model's order.

    Args:
        model: any module; it may be wrapped or compiled.
        weight_decay: decay of the others, 0 or more, as the optimizer takes it.

    Returns:
        Two groups, ``{"params": [...], "weight_decay": weight_decay}`` and one with 0.0.

    Raises:
        TypeMismatchError: ``model`` is no module, is scripted, is a graph whose layers are gone, or
            holds flat parameters of FSDP.
        OptionError: ``weight_decay`` is not a number of 0 or more.

    Source: He et al. 2019, arXiv 1812.01187, section 3.1 (no bias decay).

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> groups = parameter_groups(model, 0.05)
    >>> [[tuple(p.shape) for p in group["params"]] for group in groups]
    [[(8, 3, 3, 3)], [(8,), (8,), (8,)]]
    >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    check_model(model, "parameter_groups")
    number = isinstance(weight_decay, numbers.Real) and not isinstance(weight_decay, bool)
    if not number or not 0 <= weight_decay < math.inf:
        raise OptionError(
            message(
                "a weight decay of 0 or more",
                f"weight_decay={weight_decay!r}",
                "use what the optimizer would get, as a float, such as 0.05",
            )
        )
    parameters = {}
    without = _named_by_the_model(unwrap(model))
    graph = any(isinstance(module, fx.GraphModule) for module in model.modules())
    for place, module in model.named_modules():
        if graph and type(module) is nn.Module:
            _check_graph(place, module)
        without |= {id(parameter) for parameter in _of_norm(module)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if getattr(parameter, "_is_flat_param", False):
            raise TypeMismatchError(
                message(
                    "parameters that are a layer's own",
                    f"{name}, in which FSDP has put several together",
                    "wrap the model with use_orig_params=True, or use fully_shard",
                )
            )
        parameters[id(parameter)] = parameter
        if _is_bias(name):
            without.add(id(parameter))
    return [
        {
            "params": [p for key, p in parameters.items() if (key in without) is other],
            "weight_decay": 0.0 if other else float(weight_decay),
        }
        for other in (False, True)
    ]


def _of_norm(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a normalization layer without those of layers in it."""
    if isinstance(module, WEIGHTED):
        return []
    parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    if is_parametrized(module):
        parameters += module.parametrizations.parameters()  # type: ignore[union-attr]
    if isinstance(module, Layer) or kind_of(module) is not None:
        return parameters
    if "norm" not in type(module).__name__.lower():
        return []
    # A vector has one axis, or others of size 1.
    return [p for p in parameters if is_lazy(p) or sum(size > 1 for size in p.shape) < 2]


def _named_by_the_model(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that the model's ``no_weight_decay()`` names."""
    listed = getattr(model, "no_weight_decay", None)
    if not callable(listed):
        return set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {id(parameters[name]) for name in listed() if name in parameters}


def _check_graph(place: str, module: nn.Module) -> None:
    vectors = [
        name
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() < 2 and not _is_bias(name)
    ]
    if vectors:
        raise TypeMismatchError(
            message(
                "a model of layers",
                f"a graph, where {place}.{vectors[0]} may be γ of a layer that is gone",
                "group the parameters of the model before it is traced or exported",
            )
        )


def _is_bias(name: str) -> bool:
    parts = name.split(".")
    # What torch.nn.utils.parametrize computes is named before its parts.
    at = parts.index("parametrizations") + 1 if "parametrizations" in parts else -1
    return bool(BIASES & set(parts[at].split("_")))
