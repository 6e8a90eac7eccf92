"""Request of a layer and the interface of implementations: :class:`Call`, :class:`Way`."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs

__all__ = ["BatchStats", "Call", "FixedStats", "Normalized", "Running", "Way",
           "changed", "dense", "is_dense", "layout"]  # fmt: skip

# Buffers for mean and variance, and the share to move them by.
Running = tuple[Tensor, Tensor, float]


class BatchStats(NamedTuple):
    """Normalize with the moments of the input.

    ``update`` names buffers that a way may update as it goes. A way that does returns no moments;
    otherwise the caller updates them. ``running``: the layer's mean and variance for evaluation,
    which an exported graph has to name even where the caller updates them.
    """

    update: Running | None = None
    running: tuple[Tensor, Tensor] | None = None


class FixedStats(NamedTuple):
    """Normalize with these moments, which are constants: C elements each, or one per pool."""

    mean: Tensor
    var: Tensor


class Call(NamedTuple):
    """One normalization: what a layer asks for.

    Args:
        x: input, (N, C, \\*).
        spec: what to compute.
        weight, bias: γ and β, C elements each, or None.
        residual: added before the activation; shape of ``x``.
        stats: where the moments come from. Layers pass it: Dynamo of torch 2.6 does not build the
            default.
        group: process group over which the moments are pooled (``spec.pool`` must be over the
            batch). Every process of the group must make the same calls; a process may have no
            samples.
        wants_moments: whether the caller reads ``mean`` and ``var`` of the result.
    """

    x: Tensor
    spec: Spec
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    stats: BatchStats | FixedStats = BatchStats()
    group: Any = None
    wants_moments: bool = False

    def fixed_moments(self) -> tuple[Tensor, Tensor] | None:
        """Return the moments of :class:`FixedStats` in the accumulator's type, one per pool.

        They are copies where a backward pass may need them: by then the buffers may have moved,
        and the gradient is that of what was computed. In a trace always, so that it is the same
        graph when ``torch.jit.trace`` checks it without gradients.
        """
        if isinstance(self.stats, BatchStats):
            return None
        shape, acc = self.spec.pool.stats(*as_ncs(self.x)), accumulator(self.x.dtype)
        copy = torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        mean, var = self.stats
        return mean.to(acc, copy=copy).reshape(shape), var.to(acc, copy=copy).reshape(shape)


def changed(call: Call, **fields: Any) -> Call:
    """Return ``call`` with other ``fields``. Dynamo of torch 2.6 cannot trace ``_replace``."""
    names = Call._fields
    values: list[Any] = [fields.get(names[i], call[i]) for i in range(len(names))]
    return Call(*values)


class Normalized(NamedTuple):
    """Result of a call: the output, and the detached moments it was normalized with.

    ``mean`` and ``var`` (biased) have the shape ``pool.stats(N, C, S)`` or as many elements. They
    are None where buffers were updated with them, and may be None unless the call wants them.
    ``values`` is the number of values behind each: an int, or a tensor where it was counted
    across processes.
    """

    y: Tensor
    mean: Tensor | None
    var: Tensor | None
    values: int | Tensor


class Way(Protocol):
    """One way to compute a :class:`Call`, with its own autograd graph."""

    @property
    def name(self) -> str:
        """Name of the way, as :func:`normkit.kernels.dispatch.explain` prints it."""
        ...

    def refuses(self, call: Call) -> str | None:
        """Return why this way cannot take ``call``, as a clause after 'because', or None."""
        ...

    def run(self, call: Call) -> Normalized:
        """Compute a call that :meth:`refuses` lets through."""
        ...


def layout(x: Tensor) -> torch.memory_format:
    """Return the memory format that :func:`dense` gives ``x``.

    Its own where it is dense, otherwise the closer one.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or x.is_contiguous():
        return torch.contiguous_format
    strided_last = x.stride(1) == 1 and x.shape[1] > 1
    return last if strided_last or x.is_contiguous(memory_format=last) else torch.contiguous_format


def is_dense(x: Tensor) -> bool:
    """Return True if ``x`` is contiguous or channels-last."""
    return x.is_contiguous() or x.is_contiguous(memory_format=layout(x))


def dense(x: Tensor) -> Tensor:
    """Return ``x`` contiguous or channels-last, copying only if it is neither."""
    return x if x.is_contiguous() else x.contiguous(memory_format=layout(x))
