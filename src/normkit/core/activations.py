"""The activations a layer can apply to its own output, and their derivatives.

An activation is data, ``(name, slope)``, so that it can be a dictionary key, be pickled, and be
handed to a kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.errors import OptionError, message

__all__ = ["Act", "ActLike", "parse_act"]

ActLike = str | tuple[str, float] | Sequence[Any] | None


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
        if self.name == "silu":
            return F.silu(z, inplace=True)
        # ATen's gelu has no in-place form that every supported release offers.
        return F.gelu(z)

    def onto(self, z: Tensor) -> Tensor:
        """Apply to ``z``, which nobody else needs: over it where autograd allows that."""
        # Autograd would clone z to write silu or gelu over it.
        return self.apply_(z) if self.derivative_from_output else self(z)

    @property
    def derivative_from_output(self) -> bool:
        """Return True if the derivative follows from the sign of the output alone."""
        return self.name == "relu" or (self.name == "leaky_relu" and self.slope > 0)

    def backward_from_output(self, dy: Tensor, y: Tensor) -> Tensor:
        """:meth:`backward` from ``y = self(z)``, where :attr:`derivative_from_output`."""
        # y is positive exactly where z is, which is all these two look at.
        return self.backward(dy, y.to(dy.dtype))

    def backward(self, dy: Tensor, z: Tensor) -> Tensor:
        """Gradient at ``z`` of a loss whose gradient at ``self(z)`` is ``dy``."""
        return _BACKWARD[self.name](dy, z, self.slope)


_FORWARD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: torch.relu(z),
    "silu": lambda z, _: F.silu(z),
    "gelu": lambda z, _: F.gelu(z),
    "leaky_relu": F.leaky_relu,
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "relu": lambda dy, z, _: torch.ops.aten.threshold_backward(dy, z, 0),
    "silu": lambda dy, z, _: torch.ops.aten.silu_backward(dy, z),
    "gelu": lambda dy, z, _: torch.ops.aten.gelu_backward(dy, z),
    "leaky_relu": lambda dy, z, slope: torch.ops.aten.leaky_relu_backward(dy, z, slope, False),
}


def parse_act(act: ActLike) -> Act | None:
    """Read what a user gave as ``act=``.

    Raises:
        OptionError: ``act`` is none of the known ones.

    >>> parse_act("relu"), parse_act(("leaky_relu", 0.2)), parse_act(None)
    (Act(name='relu', slope=0.0), Act(name='leaky_relu', slope=0.2), None)
    """
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
        if len(rest) == 1 and isinstance(rest[0], (int, float)):
            return Act(name, float(rest[0]))
    elif name in _FORWARD and not rest:
        return Act(name)
    raise OptionError(_wrong(act))


def _wrong(act: object) -> str:
    return message(
        'act as None, "relu", "silu", "gelu", "leaky_relu" or ("leaky_relu", slope)',
        f"act={act!r}",
        "use one of these, or omit act and put the activation's module after the layer",
    )
