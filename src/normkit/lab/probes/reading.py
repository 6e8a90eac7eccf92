"""Input of a probe, and its result."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Hook", "Probe", "Reading", "Step"]


@dataclasses.dataclass
class Reading:
    """The readings of a probe: numbers and short vectors, by name."""

    scalars: dict[str, float | None] = dataclasses.field(default_factory=dict)
    vectors: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step that a probe observes.

    ``loss`` computes the mean loss of its batch again, with the weights as they are now; ``rate``
    is its learning rate.
    """

    loss: Callable[[], Tensor]
    rate: float


Probe = Callable[[nn.Module, Step], contextlib.AbstractContextManager[Reading]]


class Hook:
    """A hook that ``close`` removes, for :func:`contextlib.closing`."""

    def __init__(self, handle: RemovableHandle) -> None:
        self.close = handle.remove
