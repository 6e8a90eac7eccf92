"""The modules of a model, each once, and what may not be changed among them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normkit.errors import TypeMismatchError, explain
from normkit.nn.held import plain

__all__ = ["added", "check_model", "closed", "turn", "walk", "why_not_turn"]


def check_model(model: object, what: str) -> None:
    """Refuse what is no module written in Python.

    Raises:
        TypeMismatchError: as said.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeMismatchError(
            explain(
                f"{what} of a torch.nn.Module written in Python",
                f"a {type(model).__name__}",
                "give it the model itself, before it is scripted; several models go into an "
                "nn.ModuleList",
            )
        )


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, by its first name, and nothing below one that is closed."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        if not closed(module):
            prefix = f"{name}." if name else ""
            inside = [(prefix + k, m) for k, m in module._modules.items() if m is not None]
            waiting += reversed(inside)


def closed(module: nn.Module) -> bool:
    """Whether ``module`` is compiled to something else, or about to be."""
    # Quantization looks for PyTorch's exact classes.
    return isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(
        "torch.ao."
    )


def turn(module: nn.Module, cls: type) -> None:
    """Give ``module`` another class, in place, with all its state."""
    object.__setattr__(module, "__class__", cls)


def why_not_turn(module: nn.Module, after: type) -> str | None:
    """What of a module's own would get in the way of the class ``after``; None if nothing does."""
    if "forward" in vars(module):
        return "its forward was replaced"
    names = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    taken = added(after, plain(type(module))) & names
    return f"has its own {', '.join(sorted(taken))}" if taken else None


def added(ours: type, theirs: type) -> frozenset[str]:
    """Names that ``ours`` has and ``theirs`` has not, a layer's own state among them."""
    return frozenset(dir(ours)) - frozenset(dir(theirs))
