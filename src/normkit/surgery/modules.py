"""Modules of a model, each once, and which of them may change their class."""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from normkit.nn.freezing import base_class
from normkit.nn.stats_spec import has_own_forward

__all__ = [
    "AWAITED",
    "PARALLEL",
    "added_names",
    "awaited",
    "in_parallel",
    "is_opaque",
    "set_class",
    "walk",
    "why_not_convertible",
    "why_opaque",
    "why_subclass",
]


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once, by its first name; nothing below one that is opaque."""
    visited: set[int] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        yield name, module
        if not is_opaque(module):
            prefix = f"{name}." if name else ""
            children = [(prefix + k, m) for k, m in module._modules.items() if m is not None]
            stack += reversed(children)


PARALLEL = "within DistributedDataParallel, which would not average gradients of new parameters"
AWAITED = (
    "within DistributedDataParallel, whose second step would wait for the gradients of γ and β: "
    "convert before it wraps the model, or give it find_unused_parameters=True"
)


def in_parallel(model: nn.Module) -> frozenset[int]:
    """Return the identities of modules whose gradients are averaged by a list made before."""
    wrappers = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
    return frozenset(id(m) for wrapper in wrappers for m in wrapper.modules())


def awaited(model: nn.Module) -> frozenset[int]:
    """Return the identities of parameters without whose gradients a wrapper's step raises."""
    return frozenset(
        id(p)
        for m in model.modules()
        if isinstance(m, DistributedDataParallel) and not m.find_unused_parameters
        for p in m.parameters()
        if p.requires_grad
    )


def is_opaque(module: nn.Module) -> bool:
    """Return True if ``module`` is scripted, or belongs to ``torch.ao``."""
    # Quantization looks for PyTorch's exact classes.
    return isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(
        "torch.ao."
    )


def why_opaque(module: nn.Module) -> str | None:
    """Return why nothing within an opaque module is changed; None if it normalizes nothing."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    family = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return "a torch.ao module" if any(isinstance(m, family) for m in module.modules()) else None


def set_class(module: nn.Module, cls: type) -> None:
    """Change the class of ``module`` in place; its state stays."""
    object.__setattr__(module, "__class__", cls)


def why_not_convertible(module: nn.Module, after: type, shared: Container[str] = ()) -> str | None:
    """Return why ``module`` cannot get the class ``after``; None if it can.

    ``shared``: attributes that mean the same in both.
    """
    if "forward" in vars(module):
        return "its forward was replaced"
    names = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    added = added_names(after, base_class(type(module)))
    conflicts = [name for name in added & names if name not in shared]
    return f"has its own {', '.join(sorted(conflicts))}" if conflicts else None


def why_subclass(module: nn.Module) -> str:
    """Return why a subclass of a class that can be replaced is not replaced itself."""
    if is_parametrized(module):
        return "parametrized"
    if has_own_forward(module):
        return "a subclass with its own forward"
    if type(module).__module__.startswith("normkit.nn.") and (
        beyond := getattr(module, "_beyond", ())
    ):
        return f"would lose its {' and '.join(beyond)}"
    return "a subclass defined elsewhere"


def added_names(cls: type, base: type) -> frozenset[str]:
    """Return the attribute names that ``cls`` has and ``base`` lacks."""
    # The guard of running_var takes the name of a buffer that the layer has.
    return frozenset(dir(cls)) - frozenset(dir(base)) - {"running_var"}
