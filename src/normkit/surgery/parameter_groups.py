"""Parameters of a model in two groups for an optimizer: with weight decay, and without."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from normkit.errors import OptionError, TypeMismatchError, message
from normkit.nn.kinds import kind_of
from normkit.nn.layer import Layer
from normkit.statistics.check_arguments import check_model

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    r"""Group the parameters of ``model`` so that only its weights decay, for any optimizer.

    Without decay are γ and β and whatever else normalization layers learn, and every bias, as
    recipes for ImageNet and for transformers have it. Decay of γ in front of an activation
    shrinks what the layer exists to set; decay of weights in front of a normalization acts on the
    learning rate only.

    Normalization layers are ``torch.nn``'s, this package's, those that ``stats_spec`` knows, and
    modules without children whose class is named as one (``LlamaRMSNorm``). A bias is a parameter
    of that name or one that begins or ends with it (``in_proj_bias``, ``bias_ih_l0``). A parameter
    in several places is listed once, without decay if any of them is of these. All parameters are
    in the groups, frozen ones too, in the model's order.

    Args:
        model: any module; it may be wrapped or compiled.
        weight_decay: decay of the others, 0 or more, as the optimizer takes it.

    Returns:
        Two groups, ``{"params": [...], "weight_decay": weight_decay}`` and one with 0.0.

    Raises:
        TypeMismatchError: ``model`` is no module, is scripted, or holds flat parameters of FSDP.
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
    number = isinstance(weight_decay, (int, float)) and not isinstance(weight_decay, bool)
    if not number or not 0 <= weight_decay < math.inf:
        raise OptionError(
            message(
                "a weight decay of 0 or more",
                f"weight_decay={weight_decay!r}",
                "use what the optimizer would get, such as 0.05",
            )
        )
    without = {
        id(parameter)
        for module in model.modules()
        if _is_norm(module)
        for parameter in module.parameters()
    }
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # With use_orig_params FSDP shows the parameters themselves, which are of other classes.
        if type(parameter).__name__ == "FlatParameter":
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


def _is_norm(module: nn.Module) -> bool:
    """Return True if ``module`` is a normalization layer, by what is known or by its name."""
    if isinstance(module, Layer) or kind_of(module) is not None:
        return True
    name = type(module).__name__.lower().rstrip("0123456789d")
    return next(module.children(), None) is None and name.endswith("norm")


def _is_bias(name: str) -> bool:
    parts = name.split(".")
    # What torch.nn.utils.parametrize computes is named before its parts.
    at = parts.index("parametrizations") + 1 if "parametrizations" in parts else -1
    last = parts[at]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")
