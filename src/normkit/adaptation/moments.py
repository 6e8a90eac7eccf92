"""Moments that an adapted layer normalizes by: of the input, of a stream, mixed with memory."""

from __future__ import annotations

import contextlib
import threading

import torch
from torch import Tensor

from normkit.core.pools import PER_CHANNEL
from normkit.kernels.modes import differentiates, transformed
from normkit.kernels.moments import moments

__all__ = ["Stream", "mix", "moments_of", "widest"]

_State = tuple[Tensor, Tensor, Tensor]  # samples, mean, variance


def widest(t: Tensor) -> torch.dtype:
    """Return the type that moments are kept in: float64, which Apple's GPUs have not."""
    return torch.float32 if t.device.type == "mps" else torch.float64


def moments_of(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (C,) over the batch or (N, C) over each sample.

    In float64 where the device has it, differentiable. Values are read in float32 or wider, about
    a mean of that type, so that the rest of the mean is not lost.
    """
    fine = widest(x)
    if not (per_sample or differentiates(x) or transformed(x)):
        both = moments(x, PER_CHANNEL)
        return both.mean.to(x.device, fine), (both.m2 / both.count).to(x.device, fine)
    dims = [*range(2, x.dim())] if per_sample else [0, *range(2, x.dim())]
    values = x.to(torch.promote_types(torch.float32, x.dtype))
    if not dims:  # each value is its own mean
        return values.to(fine), torch.zeros_like(values, dtype=fine)
    near = values.detach().mean(dims, keepdim=True)
    var, rest = torch.var_mean(values - near, dim=dims, correction=0)
    return near.reshape(rest.shape).to(fine) + rest.to(fine), var.to(fine)


def mix(
    prior: float, remembered: tuple[Tensor, Tensor], count: Tensor | float,
    target: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mix remembered moments, which weigh as ``prior`` samples, with those of ``count`` samples.

    Means and variances both linearly, N/(N + n) and n/(N + n) (Schneider et al. 2020, section 3):
    the prior is on the statistics of one domain, so the step between two means adds no variance.

    >>> mean, variance = mix(3, (torch.zeros(1), torch.ones(1)), 1, (torch.ones(1), torch.ones(1)))
    >>> mean, variance
    (tensor([0.2500]), tensor([1.]))
    """
    if prior == 0:
        return target
    share = count / (prior + count)
    wide = target[0].dtype
    mean, var = ((1 - share) * old.detach().to(wide) + share * new
                 for old, new in zip(remembered, target, strict=True))  # fmt: skip
    return mean, var


class Stream:
    """Moments of the last samples of a stream, as one layer has them.

    Merged exactly while ``memory`` holds all of them; then each batch of n replaces the share
    n/memory. Several threads may add to it.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._state: _State | None = None
        self._before: _State | None = None

    @property
    def count(self) -> Tensor | None:
        """Samples that the moments weigh, at most the memory; None before the first."""
        return None if self._state is None else self._state[0]

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance, (C,) each; None before the first batch."""
        return None if self._state is None else self._state[1:]

    def add(self, samples: int, batch: tuple[Tensor, Tensor], again: bool = False) -> _State:
        """Take a batch; return samples, mean and variance of the stream with it.

        A batch that is not finite is left out. Gradients pass through the batch's part.

        Args:
            again: the batch was taken already, and its forward is run again for its gradients.
        """
        # The compiler cannot see a lock, and a compiled model runs its graph as a whole.
        with contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock:
            before = self._before if again else self._state
            after = self._merge(before, samples, batch)
            if not again:
                self._before = before
                self._state = after[0], after[1].detach(), after[2].detach()
        return after

    def _merge(self, before: _State | None, samples: int, batch: tuple[Tensor, Tensor]) -> _State:
        mean, var = batch
        if before is None:
            before = mean.new_zeros(()), torch.zeros_like(mean), torch.zeros_like(var)
        count, old_mean, old_var = (t.detach().to(mean.device, mean.dtype) for t in before)
        total = (count + samples).clamp(max=self._memory).clamp(min=samples)
        share = samples / total
        step = mean - old_mean
        new_mean = old_mean + share * step
        new_var = old_var + share * (var - old_var + (1 - share) * step.square())
        finite = (mean.isfinite() & var.isfinite()).all().detach()
        return (
            torch.where(finite, total, count),
            torch.where(finite, new_mean, old_mean),
            torch.where(finite, new_var, old_var),
        )
