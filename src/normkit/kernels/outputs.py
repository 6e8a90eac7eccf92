"""Tell a listener in this thread how an output is computed again.

``surgery/memory`` listens during a model's forward pass. Otherwise nothing is prepared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Listener", "Repeat", "listen", "listening", "offer"]

# How many times larger an output is than γ, at least.
_SMALL = 16

# The output, equal to the last bit, from the input and the residual. It holds no large tensor.
Repeat = Callable[[Tensor, Tensor | None], Tensor]


class Listener(Protocol):
    """Receive outputs that can be computed again."""

    def wants(self, y: Tensor, residual: Tensor | None) -> bool:
        """Return whether ``y`` may be computed again."""
        ...

    def output(self, y: Tensor, x: Tensor, residual: Tensor | None, repeat: Repeat) -> None:
        """Take ``repeat``, which computes ``y`` of ``x`` and ``residual``."""
        ...


class _Thread(threading.local):
    listener: Listener | None = None


listening = _Thread()
"""What listens in this thread: ``listening.listener``."""

ever = False
"""True once anything has listened in any thread; read as ``outputs.ever``. It is for the path of
small layers, to which a look at what is kept for each thread would be one percent."""


def listen(listener: Listener | None) -> None:
    """Let ``listener`` receive the outputs of this thread; None to end that."""
    global ever
    ever = True
    listening.listener = listener


def offer(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    repeat: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Any],
) -> None:
    """Offer ``y``, computed of the other tensors as ``repeat`` computes it, to the listener.

    γ and β are copied, so that what shards or updates them meanwhile changes nothing; where they
    have as many numbers as a sample, and samples are few, nothing would be saved.
    """
    listener = listening.listener
    if listener is None or not listener.wants(y, residual):
        return
    if weight is not None and _SMALL * weight.numel() > y.numel():
        return
    gamma = None if weight is None else weight.detach().clone()
    beta = None if bias is None else bias.detach().clone()

    def with_copies(x: Tensor, residual: Tensor | None) -> Tensor:
        again: Tensor = repeat(x, gamma, beta, residual)
        return again

    listener.output(y, x, residual, with_copies)
