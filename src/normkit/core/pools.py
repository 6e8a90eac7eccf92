"""Pools of numbers that share one mean: the ``(N, C, S)`` view and the four ways to pool it.

Any input of a normalization layer is seen as sample × channel × space. A pool splits one of the
first two axes, which gives a tensor of four axes, and names those over which moments are taken:

=============  ===========  ==============  =========================================
``over``       view         moments over    layers
=============  ===========  ==============  =========================================
``"batch"``    (N, C, 1, S) N, S            BatchNorm and its kin
``"ghost"``    (P, M, C, S) M, S            GhostBatchNorm: P parts of M samples (N = P·M)
``"group"``    (N, G, K, S) K, S            GroupNorm; InstanceNorm (G = C); LayerNorm
                                            and RMSNorm (G = 1, S = 1)
``"position"`` (N, 1, C, S) C               LayerNorm2d: the channels at each pixel
=============  ===========  ==============  =========================================

Layers also differ in where the moments come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["PER_CHANNEL", "PER_POSITION", "Pool", "as_ncs", "concrete"]


class Spatial(NamedTuple):
    """Shapes in a view that keeps the spatial axes, and the axes that moments are taken over."""

    view: tuple[int, ...]
    stats: tuple[int, ...]
    params: tuple[int, ...]
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Elements of an ``(N, C, S)`` tensor that share one mean and one variance.

    Args:
        over: ``"batch"``, ``"ghost"``, ``"group"`` or ``"position"``, as in the table above.
        groups: how many groups the channels are split into (``"group"``), or how many parts
            the batch is (``"ghost"``); it divides them.

    >>> Pool("group", groups=2).view(8, 6, 49)
    (8, 2, 3, 49)
    >>> Pool("group", groups=2).count(8, 6, 49)   # values that share one mean
    147
    >>> PER_CHANNEL.stats(8, 6, 49)
    (1, 6, 1, 1)
    """

    over: Literal["batch", "ghost", "group", "position"]
    groups: int = 1

    def view(self, n: int, c: int, s: int) -> tuple[int, int, int, int]:
        """Return the shape of the input as this pool views it, four axes."""
        if self.over == "batch":
            return n, c, 1, s
        if self.over == "ghost":
            return self.groups, n // self.groups, c, s
        if self.over == "position":
            return n, 1, c, s
        return n, self.groups, c // self.groups, s

    def spatial(self, shape: Sequence[int]) -> Spatial:
        """Return the shapes of :meth:`view`, :meth:`stats` and :meth:`params` with spatial axes.

        A compiler that chooses how images lie in memory is bound to one order by a flattened axis.

        Args:
            shape: that of the input, ``(N, C, *)``.

        >>> Pool("group", groups=2).spatial((8, 6, 7, 5))
        Spatial(view=(8, 2, 3, 7, 5), stats=(8, 2, 1, 1, 1), params=(1, 2, 3, 1, 1), dims=(2, 3, 4))
        >>> PER_CHANNEL.spatial((8, 6, 7, 5)).view, PER_POSITION.spatial((8, 6, 7, 5)).stats
        ((8, 6, 7, 5), (8, 1, 1, 7, 5))
        """
        n, c, *space = shape
        # The axis that pools over the batch leave empty, between channels and space, is left out.
        first = 2 if self.over == "batch" else 3
        ones, axes = (1,) * len(space), range(first, first + len(space))
        moments = self.stats(n, c, 1)[:first]
        return Spatial(
            view=(*self.view(n, c, 1)[:first], *space),
            stats=(*moments, *(ones if 3 in self.dims else space)),
            params=(*self.params(c)[:first], *ones),
            dims=(*(d for d in self.dims if d < first), *(axes if 3 in self.dims else ())),
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """Axes of the view over which moments are taken."""
        return _DIMS[self.over]

    @property
    def param_dims(self) -> tuple[int, ...]:
        """Axes of the view along which γ and β do not vary."""
        return (0, 1, 3) if self.over == "ghost" else (0, 3)

    @property
    def shared_dims(self) -> tuple[int, ...]:
        """Axes along which neither the moments nor γ and β vary.

        Backward sums over these once and uses the result for both γ, β and x.
        """
        return tuple(d for d in self.param_dims if d in self.dims)

    def stats(self, n: int, c: int, s: int) -> tuple[int, int, int, int]:
        """Return the shape of mean and variance, broadcastable to the view."""
        a, b, d, e = (1 if i in self.dims else v for i, v in enumerate(self.view(n, c, s)))
        return a, b, d, e

    def params(self, c: int) -> tuple[int, int, int, int]:
        """Return the shape of γ and β, broadcastable to the view."""
        if self.over == "ghost":
            return 1, 1, c, 1
        _, g, k, _ = self.view(1, c, 1)
        return 1, g, k, 1

    def count(self, n: int, c: int, s: int) -> int:
        """Return the number of values that share one mean."""
        view, count = self.view(n, c, s), 1
        for d in self.dims:
            count *= view[d]
        return count


_DIMS = {"batch": (0, 2, 3), "ghost": (1, 3), "group": (2, 3), "position": (2,)}

PER_CHANNEL = Pool("batch")
PER_POSITION = Pool("position")


def as_ncs(x: Tensor) -> tuple[int, int, int]:
    """Return the sizes ``(N, C, S)`` of a tensor of shape ``(N, C, *)``.

    >>> import torch
    >>> as_ncs(torch.empty(8, 3, 5, 5)), as_ncs(torch.empty(8, 3)), as_ncs(torch.empty(0, 3, 4))
    ((8, 3, 25), (8, 3, 1), (0, 3, 4))
    """
    shape = x.shape
    s = 1
    for size in shape[2:]:
        s *= size
    return shape[0], shape[1], s


def concrete(size: int) -> int:
    """Return ``size`` as a number that Python code may look at.

    While ``torch.jit.trace`` runs, sizes are tensors, and comparing one warns that the graph may
    depend on it. For checks, on which no output depends.
    """
    if type(size) is int or not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return size
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return int(size)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
