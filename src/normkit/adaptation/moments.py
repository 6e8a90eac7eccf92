"""Moments that an adapted layer normalizes by: of the input, of a stream, mixed with memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normkit.core.pools import PER_CHANNEL
from normkit.kernels.modes import differentiates, transformed
from normkit.kernels.moments import moments

__all__ = ["Stream", "mix", "moments_of"]


def moments_of(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (C,) over the batch or (N, C) over each sample.

    In float32 or wider, differentiable.
    """
    wide = torch.promote_types(torch.float32, x.dtype)
    if per_sample:
        var, mean = torch.var_mean(x.to(wide).flatten(2), dim=2, correction=0)
        return mean, var
    if differentiates(x) or transformed(x):
        dims = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x.to(wide), dim=dims, correction=0)
        return mean, var
    both = moments(x, PER_CHANNEL)
    return both.mean.to(x.device, wide), (both.m2 / both.count).to(x.device, wide)


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
    n/memory. A memory of 0 holds the present batch alone.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._state: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def count(self) -> Tensor | None:
        """Samples that the moments weigh, at most the memory; None before the first."""
        return None if self._state is None else self._state[0]

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance, (C,) each; None before the first batch."""
        return None if self._state is None else self._state[1:]

    def add(self, samples: int, batch: tuple[Tensor, Tensor]) -> None:
        """Take a batch; one that is not finite is left out."""
        mean, var = (t.detach() for t in batch)
        before = self._state or (mean.new_zeros(()), torch.zeros_like(mean), torch.zeros_like(var))
        count, old_mean, old_var = (t.to(mean.device) for t in before)
        most = max(float(samples), self._memory)
        total = count + samples
        total = total if math.isinf(most) else total.clamp_max(most)
        share = samples / total
        step = mean - old_mean
        new = (
            total,
            old_mean + share * step,
            old_var + share * (var - old_var + (1 - share) * step.square()),
        )
        finite = (mean.isfinite() & var.isfinite()).all()
        self._state = tuple(  # type: ignore[assignment]
            torch.where(finite, a, b) for a, b in zip(new, (count, old_mean, old_var), strict=True)
        )
