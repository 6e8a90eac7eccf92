"""Layers in graphs of ``torch.fx``: one node each, or a node of ``torch.nn`` for tools that ask."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from normkit.nn.freezing import is_frozen
from normkit.nn.namesakes import namesake

__all__ = ["NAMESAKE", "as_leaf"]

NAMESAKE = "_namesake"
"""Attribute of a layer that such a graph names: a module of ``torch.nn`` with its tensors."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Modules of PyTorch that trace a model and then look for exact classes; and the class of what is
# before a layer that they want, as they leave it as it is after anything else.
_TOOLS: dict[str, tuple[type[nn.Module], ...]] = {
    "torch.ao.quantization.quantize_fx": (),
    "torch.fx.experimental.optimization": _CONVOLUTIONS,
}


def as_leaf(layer: Any, x: fx.Proxy, residual: Any, **more: Any) -> Any:
    """Record the layer as one node of a graph, as ``torch.fx`` does for ``torch.nn``'s layers.

    ``more``: further inputs of its forward, by keyword; those that are None are left out.

    For tools of PyTorch that know no other classes than ``torch.nn``'s, its namesake's node, then
    sum and activation.
    """
    tracer: Any = x.tracer
    path = tracer.path_of_module(layer)
    if not _wanted_as_namesake(layer, x):
        args = (x,) if residual is None else (x, residual)
        inputs = {name: value for name, value in more.items() if value is not None}
        return tracer.create_proxy("call_module", path, args, inputs)
    # A layer that is the model itself has the empty path.
    z: Any = tracer.create_proxy("call_module", f"{path}.{NAMESAKE}".lstrip("."), (x,), {})
    z = z if residual is None else z + residual
    if layer.act == "relu":
        return F.relu(z)  # which such tools know, where torch.relu is another function
    return z if layer._act is None else layer._act(z)


def _wanted_as_namesake(layer: nn.Module, x: fx.Proxy) -> bool:
    before = _calling_tool()
    if before is None or namesake(type(layer)) is None:
        return False
    root: nn.Module = x.tracer.root  # type: ignore[attr-defined]
    drops = is_frozen(layer) or getattr(layer, "average", "exponential") != "exponential"
    if root.training and drops:
        return False
    if not before:
        return True
    node = x.node
    return (
        isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and node.op == "call_module"
        and type(root.get_submodule(str(node.target))) in before
    )


def _calling_tool() -> tuple[type[nn.Module], ...] | None:
    """Return the entry of the tool that traces, if it is one of :data:`_TOOLS`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        tool = _TOOLS.get(frame.f_globals.get("__name__", ""))
        if tool is not None:
            return tool
        frame = frame.f_back
    return None
