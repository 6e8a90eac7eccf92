"""Activations a layer can apply to its own output, and their derivatives.

An activation is data, ``(name, slope)``, so that it can be a dictionary key, be pickled, and be
handed to a kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import OptionError, message

__all__ = ["Act", "ActLike", "act_of_call", "act_of_module", "has_hooks", "parse_act"]

ActLike = str | tuple[str, float] | Sequence[Any] | nn.Module | Callable[..., Any] | None


@dataclasses.dataclass(frozen=True)
class Act:
    """One activation. ``slope`` is used by ``leaky_relu`` only.

    >>> Act("leaky_relu", 0.1)(torch.tensor([-1.0, 2.0]))
    tensor([-0.1000,  2.0000])
    """

    name: str
    slope: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """Apply to ``z``, out of place and differentiably."""
        return _FORWARD[self.name](z, self.slope)

    def apply_(self, z: Tensor) -> Tensor:
        """Apply to ``z``, writing over it. Not differentiable."""
        if self.name == "relu":
            return torch.relu_(z)
        if self.name == "leaky_relu":
            return F.leaky_relu_(z, self.slope)
        if self.name == "relu6":
            return F.relu6(z, inplace=True)
        if self.name == "silu":
            return F.silu(z, inplace=True)
        # ATen's gelu has no in-place form that every supported release offers.
        return F.gelu(z)

    def onto(self, z: Tensor) -> Tensor:
        """Apply to ``z``, in place where autograd allows it; ``z`` must not be used afterwards."""
        # Autograd would clone z to write silu or gelu over it.
        return self.apply_(z) if self.derivative_from_output else self(z)

    @property
    def option(self) -> str | tuple[str, float]:
        """Value to pass as ``act=`` for this activation."""
        return (self.name, self.slope) if self.name == "leaky_relu" else self.name

    @property
    def derivative_from_output(self) -> bool:
        """Return True if the derivative follows from the output alone."""
        return self.name in ("relu", "relu6") or (self.name == "leaky_relu" and self.slope > 0)

    def backward_from_output(self, dy: Tensor, y: Tensor) -> Tensor:
        """:meth:`backward` from ``y = self(z)``, where :attr:`derivative_from_output`."""
        # y is positive exactly where z is, and 6 exactly where z is that or more; they look at no
        # more than that.
        return self.backward(dy, y.to(dy.dtype))

    def backward(self, dy: Tensor, z: Tensor) -> Tensor:
        """Gradient at ``z`` of a loss whose gradient at ``self(z)`` is ``dy``."""
        return _BACKWARD[self.name](dy, z, self.slope)


# No default of a call: Dynamo of torch 2.12 hashes an instance that has no values yet.
Act.name = ""

_FORWARD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: torch.relu(z),
    "relu6": lambda z, _: F.relu6(z),
    "silu": lambda z, _: F.silu(z),
    "gelu": lambda z, _: F.gelu(z),
    "leaky_relu": F.leaky_relu,
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "relu": lambda dy, z, _: torch.ops.aten.threshold_backward(dy, z, 0),
    "relu6": lambda dy, z, _: torch.ops.aten.hardtanh_backward(dy, z, 0, 6),
    "silu": lambda dy, z, _: torch.ops.aten.silu_backward(dy, z),
    "gelu": lambda dy, z, _: torch.ops.aten.gelu_backward(dy, z),
    "leaky_relu": lambda dy, z, slope: torch.ops.aten.leaky_relu_backward(dy, z, slope, False),
}


# What computes each of them in torch.nn, with its defaults. Identity is none.
_CLASSES: dict[type[nn.Module], str | None] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.Identity: None,
}
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu",
    F.leaky_relu: "leaky_relu",
}
_LIMITS = (0, 6)
# In a graph also their in-place forms, and methods of tensors by name.
_CALLS: dict[Any, str] = {
    **_FUNCTIONS,
    F.hardtanh: "relu6",  # if its limits are that, as nn.ReLU6 calls it
    torch.relu_: "relu",
    F.leaky_relu_: "leaky_relu",
    "relu": "relu",
    "relu_": "relu",
}


def parse_act(act: ActLike) -> Act | None:
    """Read what a user passed as ``act=``.

    A module is read with its options, except ``inplace``, which has no meaning here; a class or a
    function of ``torch.nn.functional`` stands for its defaults; ``nn.Identity`` for None.

    Raises:
        OptionError: ``act`` is none of the known ones, such as a subclass of one, a GELU with
            ``approximate="tanh"``, or a module with hooks.

    >>> parse_act("relu"), parse_act(("leaky_relu", 0.2)), parse_act(None)
    (Act(name='relu', slope=0.0), Act(name='leaky_relu', slope=0.2), None)
    >>> parse_act(nn.LeakyReLU(0.2)), parse_act(nn.SiLU)
    (Act(name='leaky_relu', slope=0.2), Act(name='silu', slope=0.0))
    """
    if isinstance(act, nn.Module):
        if type(act) is nn.Identity and not has_hooks(act):
            return None
        known = act_of_module(act)
        if known is None or has_hooks(act):
            raise OptionError(_wrong(act))
        return known
    if isinstance(act, type) and act in _CLASSES:
        act = _CLASSES[act]
    elif callable(act) and any(act is function for function in _FUNCTIONS):
        act = _FUNCTIONS[act]
    if act is None:
        return None
    if isinstance(act, str):
        name, rest = act, ()
    elif isinstance(act, (tuple, list)) and act and isinstance(act[0], str):
        name, rest = act[0], tuple(act[1:])
    else:
        raise OptionError(_wrong(act))
    if name == "leaky_relu":
        if not rest:
            return Act(name, 0.01)
        if len(rest) == 1 and _is_slope(rest[0]):
            return Act(name, float(rest[0]))
    elif name in _FORWARD and not rest:
        return Act(name)
    raise OptionError(_wrong(act))


def act_of_module(module: object) -> Act | None:
    """Return the activation that ``module`` computes and nothing else, or None.

    Exact classes alone: a subclass may compute something else.

    >>> act_of_module(nn.GELU()), act_of_module(nn.GELU(approximate="tanh"))
    (Act(name='gelu', slope=0.0), None)
    """
    name = _CLASSES.get(type(module))  # type: ignore[arg-type]
    if name is None or (name == "gelu" and getattr(module, "approximate", "") != "none"):
        return None
    if name == "relu6":
        limits = getattr(module, "min_val", None), getattr(module, "max_val", None)
        return Act(name) if limits == _LIMITS else None
    if name != "leaky_relu":
        return Act(name)
    slope = getattr(module, "negative_slope", None)
    return Act(name, float(slope)) if _is_slope(slope) else None


def act_of_call(function: object, *args: Any, **kwargs: Any) -> Act | None:
    """Return the activation that ``function(z, *args, **kwargs)`` computes, or None.

    ``function`` may write its result over ``z``, and may be the name of a method of tensors.

    >>> act_of_call(F.leaky_relu, 0.2, inplace=True), act_of_call(F.gelu, approximate="tanh")
    (Act(name='leaky_relu', slope=0.2), None)
    """
    name = _CALLS.get(function)
    if name is None or kwargs.get("approximate", "none") != "none":
        return None
    if function is F.hardtanh and args[:2] != _LIMITS:
        return None
    if name != "leaky_relu":
        return Act(name)
    slope = args[0] if args else kwargs.get("negative_slope", 0.01)
    return Act(name, float(slope)) if _is_slope(slope) else None


def has_hooks(module: nn.Module) -> bool:
    """Return True if skipping the call of ``module`` could be noticed, by a hook for example."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def _is_slope(slope: object) -> TypeGuard[float]:
    return isinstance(slope, (int, float)) and type(slope) is not bool and math.isfinite(slope)


def _wrong(act: object) -> str:
    return message(
        'act as None, "relu", "relu6", "silu", "gelu", "leaky_relu", ("leaky_relu", slope), or the '
        "module of torch.nn for one of these (exactly that class, without hooks)",
        # On one line, as a Sequential's is not.
        f"act={' '.join(repr(act).split())}",
        "use one of these, or omit act and put the activation's module after the layer",
    )
