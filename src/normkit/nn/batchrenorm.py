"""Batch renormalization: the batch's statistics, corrected towards the remembered ones."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from normkit.core import formula
from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs
from normkit.errors import OptionError, explain
from normkit.kernels.autograd import Normalized, normalize
from normkit.kernels.modes import transformed
from normkit.kernels.moments import moments
from normkit.kernels.native import Running
from normkit.nn import averages
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchStatistics, Own
from normkit.nn.layer import check_more_than_one

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "Ramp"]

Step = TypeVar("Step", float, Tensor)


class Ramp(NamedTuple):
    """A limit that is ``start`` up to step ``first`` and then goes straight to ``end`` at ``last``.

    >>> ramp = Ramp(start=1.0, end=3.0, first=5_000, last=40_000)
    >>> ramp.at(0), ramp.at(22_500), ramp.at(100_000)
    (1.0, 2.0, 3.0)
    """

    start: float
    end: float
    first: int
    last: int

    def at(self, step: Step) -> Step:
        """The limit at ``step``, of the same type."""
        share = (step - self.first) / max(self.last - self.first, 1)
        within = share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)
        return self.start + (self.end - self.start) * within


class _Renorm(BatchStatistics):
    _whole = False
    # r and d of the last batch, for a checkpoint that runs it again.
    _last: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        r_max: float | Ramp = Ramp(1.0, 3.0, 5_000, 40_000),  # noqa: B008
        d_max: float | Ramp = Ramp(0.0, 5.0, 5_000, 25_000),  # noqa: B008
        bias: bool = True,
        act: ActLike = None,
        average: averages.Average = "exponential",
    ) -> None:
        for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
            _check_limit(name, limit, least)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip
        self.r_max = r_max
        self.d_max = d_max

    def limits(self, step: int | None = None) -> tuple[float, float]:
        """The limits of r and d after ``step`` batches; None for those seen so far.

        >>> BatchRenorm2d(3).limits(), BatchRenorm2d(3, r_max=2.0).limits(15_000)
        ((1.0, 0.0), (2.0, 2.5))
        """
        if step is None:
            step = 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)
        return _at(self.r_max, float(step)), _at(self.d_max, float(step))

    def _by_batch(
        self, input: Tensor, residual: Tensor | None, own: Own, running: Running | None
    ) -> Normalized:
        n, _, s = as_ncs(input)
        if own.mean is None or own.var is None or not self.track_running_stats or n * s == 0:
            return super()._by_batch(input, residual, own, running)
        check_more_than_one(self, input, n * s, "channel")
        if self._last is not None and not self.counts():
            r, d = self._last  # a checkpoint: by now the statistics have moved
        else:
            r, d = self._correction(input, own, own.mean, own.var)
            if not is_compiling() and not transformed(input):
                self._last = r, d
        # γ(x̂·r + d) + β is a scale and a shift of x̂, so every kernel can do it.
        weight = r if own.weight is None else own.weight.to(r.dtype) * r
        bias = d if own.weight is None else own.weight.to(r.dtype) * d
        if own.bias is not None:
            bias = bias + own.bias.to(r.dtype)
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        return normalize(input, spec, weight, bias, residual, running=running)

    @torch.no_grad()
    def _correction(
        self, input: Tensor, own: Own, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """r and d of a batch, C elements each."""
        x = input.detach()
        if is_compiling() or transformed(x):
            batch_mean, batch_var = formula.stats_of(x, PER_CHANNEL)
        else:
            found = moments(x, PER_CHANNEL)
            batch_mean, batch_var = found.mean, found.variance
        acc = accumulator(input.dtype)
        deviation = torch.sqrt(var.to(batch_mean.dtype) + self.eps)
        step = 0.0 if own.tracked is None else own.tracked.to(deviation.dtype)
        r_max, d_max = _at(self.r_max, step), _at(self.d_max, step)
        r = torch.sqrt(batch_var.flatten() + self.eps) / deviation
        d = (batch_mean.flatten() - mean) / deviation
        return r.clamp(1 / r_max, r_max).to(acc), d.clamp(-d_max, d_max).to(acc)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


class BatchRenorm1d(_Renorm, BatchNorm1d, nn.BatchNorm1d):
    """:class:`BatchRenorm2d` for (N, C) and (N, C, L).

    >>> BatchRenorm1d(3)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """


class BatchRenorm2d(_Renorm, BatchNorm2d, nn.BatchNorm2d):
    r"""Batch normalization whose training is corrected towards what evaluation will do.

    .. math::
        y = \mathrm{act}\left(\gamma\left(\frac{x - \mu_B}{\sigma_B}\,r + d\right) + \beta
            + \mathrm{residual}\right),\quad
        r = \mathrm{clip}_{[1/r_{max},\,r_{max}]}\frac{\sigma_B}{\sigma},\quad
        d = \mathrm{clip}_{[-d_{max},\,d_{max}]}\frac{\mu_B - \mu}{\sigma}

    with the moments of the batch (B) and those remembered before it, :math:`\sigma =
    \sqrt{\mathrm{Var} + \epsilon}`. No gradient flows through r and d. Within its limits a sample
    is normalized as in evaluation, whatever else is in its batch; with r_max = 1 and d_max = 0
    the layer is batch normalization. So small batches, and those whose samples depend on each
    other, do less harm. Evaluation, ``state_dict`` and checkpoints are :class:`BatchNorm2d`'s.

    The limits may be numbers or a :class:`Ramp` over the batches seen, which
    ``num_batches_tracked`` counts, so a checkpoint goes on where it was. The defaults are the
    paper's, for a long training: one of few thousand steps wants a shorter ramp.

    Args:
        num_features: number of channels C.
        momentum: share of the remembered moments replaced by each batch, 0.01 as in the paper.
        r_max: most that the batch's deviation is corrected by, at least 1.
        d_max: most that the batch's mean is corrected by, in remembered deviations.
        The others as :class:`normkit.BatchNorm2d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        OptionError: ``r_max`` below 1, ``d_max`` below 0.
        Others as BatchNorm2d.

    Note:
        The paper averages the deviation; this layer averages the variance, as PyTorch's buffers
        have it. Under activation checkpointing r and d are those of the layer's last forward
        pass: call it once before each backward pass.

    Source: Ioffe 2017, arXiv 1702.03275, algorithms 1 and 2, section 4.

    >>> layer = BatchRenorm2d(8, r_max=3.0, d_max=Ramp(0.0, 5.0, first=100, last=500))
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """


def _at(limit: float | Ramp, step: Any) -> Any:
    return limit.at(step) if isinstance(limit, Ramp) else limit


def _check_limit(name: str, limit: float | Ramp, least: float) -> None:
    values = limit[:2] if isinstance(limit, Ramp) else (limit,)
    numbers = all(isinstance(v, (int, float)) and v >= least for v in values)
    if not numbers or (isinstance(limit, Ramp) and limit.last < limit.first):
        raise OptionError(
            explain(
                f"{name} is a number of at least {least}, or a Ramp between two such",
                f"{name}={limit!r}",
                f"use {name}={3.0 if least else 5.0}, or leave it out for the paper's schedule",
            )
        )
