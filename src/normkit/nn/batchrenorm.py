"""Batch renormalization: the batch's statistics, corrected towards the remembered ones."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from normkit.core import formula
from normkit.core.activations import ActLike
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs, concrete
from normkit.errors import OptionError, TypeMismatchError, message
from normkit.kernels.call import BatchStats, Call, Normalized, changed
from normkit.kernels.modes import exporting, transformed
from normkit.kernels.moments import moments
from normkit.nn import averages
from normkit.nn.arguments import Check, number
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.batchstatistics import BatchStatistics, LayerTensors
from normkit.nn.layer import step, warn_if_recorded

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d", "Ramp"]

Step = TypeVar("Step", float, Tensor)


class Ramp(NamedTuple):
    """Limit that is ``start`` up to step ``first`` and then goes straight to ``end`` at ``last``.

    >>> ramp = Ramp(start=1.0, end=3.0, first=5_000, last=40_000)
    >>> ramp.at(0), ramp.at(22_500), ramp.at(100_000)
    (1.0, 2.0, 3.0)
    """

    start: float
    end: float
    first: int
    last: int

    def at(self, step: Step) -> Step:
        """Limit at ``step``, of the same type."""
        share = (step - self.first) / max(self.last - self.first, 1)
        within = share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)
        return self.start + (self.end - self.start) * within


def _limit(least: float, usual: float) -> Check:
    """Return a check for r_max or d_max."""

    def check(layer: str, name: str, limit: Any) -> Any:
        rule = f"a number of at least {least}, or a Ramp between two such numbers"
        fix = f"use {name}={usual}, or leave it out for the paper's schedule"
        values = limit if isinstance(limit, Ramp) else (limit, limit, 0, 0)
        with contextlib.suppress(TypeMismatchError):
            ramp: Any = [number(layer, name, value, rule, fix) for value in values]
            start, end, first, last = ramp
            if start >= least and end >= least and first <= last:
                return Ramp(*ramp) if isinstance(limit, Ramp) else start
        raise OptionError(message(f"{name} of {layer} as {rule}", f"{name}={limit!r}", fix))

    return check


class _Renorm(BatchStatistics):
    _pools_whole_batch = False
    _beyond = ("correction",)
    _checked: ClassVar[dict[str, Check]] = {
        **BatchStatistics._checked,
        "r_max": _limit(1, 3.0),
        "d_max": _limit(0, 5.0),
    }
    # r and d of the last batch, for activation checkpointing, which runs it again.
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
        self.r_max, self.d_max = r_max, d_max
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip

    def limits(self, step: int | None = None) -> tuple[float, float]:
        """Return the limits of r and d after ``step`` batches, by default after those seen so far.

        >>> BatchRenorm2d(3).limits(), BatchRenorm2d(3, r_max=2.0).limits(15_000)
        ((1.0, 0.0), (2.0, 2.5))
        """
        if step is None:
            step = 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)
        return _at(self.r_max, float(step)), _at(self.d_max, float(step))

    @step
    def _forward_batch_stats(self, call: Call, tensors: LayerTensors) -> Normalized:
        n, _, s = as_ncs(call.x)
        mean, var = tensors.mean, tensors.var
        if mean is None or var is None or not self.track_running_stats or concrete(n * s) == 0:
            return super()._forward_batch_stats(call, tensors)
        if exporting():
            warn_if_recorded(self, n)
        if self._last is not None and not self.updates_stats():
            r, d = self._last  # recomputed under checkpointing: the statistics have moved since
        else:
            r, d = self._correction(call.x, mean, var, tensors.tracked)
            if not is_compiling() and not transformed(call.x):
                self._last = r, d
        # γ(x̂·r + d) + β is a scale and a shift of x̂, so every way can compute it.
        gamma = 1.0 if call.weight is None else call.weight.to(r.dtype)
        beta = 0.0 if call.bias is None else call.bias.to(r.dtype)
        call = changed(call, weight=gamma * r, bias=gamma * d + beta)
        if is_compiling() or transformed(call.x):
            # r and d are of this batch, so no tool can turn the operation into evaluation's.
            call = changed(call, stats=BatchStats())
        return super()._forward_batch_stats(call, tensors)

    @torch.no_grad()
    def _correction(
        self, x: Tensor, mean: Tensor, var: Tensor, tracked: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return r and d of a batch, C elements each."""
        x = x.detach()
        if is_compiling() or transformed(x):
            batch_mean, batch_var = formula.stats_of(x, PER_CHANNEL)
        else:
            batch = moments(x, PER_CHANNEL)
            batch_mean, batch_var = batch.mean, batch.variance
        acc = accumulator(x.dtype)
        deviation = torch.sqrt(var.to(batch_mean.dtype) + self.eps)
        after = 0.0 if tracked is None else tracked.to(deviation.dtype)
        r_max, d_max = _at(self.r_max, after), _at(self.d_max, after)
        r = torch.sqrt(batch_var.flatten() + self.eps) / deviation
        d = (batch_mean.flatten() - mean) / deviation
        if tracked is not None and (self.momentum is None or self.average != "exponential"):
            # Nothing is remembered yet: what the buffers start with has no part in these averages.
            r, d = torch.where(tracked == 0, 1.0, r), torch.where(tracked == 0, 0.0, d)
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
        have it. ``torch.optim.swa_utils.update_bn`` counts batches anew, so a :class:`Ramp` starts
        again. Under activation checkpointing r and d are those of the layer's last forward
        pass: call it once before each backward pass.

    Source: Ioffe 2017, arXiv 1702.03275, algorithms 1 and 2, section 4.

    >>> layer = BatchRenorm2d(8, r_max=3.0, d_max=Ramp(0.0, 5.0, first=100, last=500))
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """


class BatchRenorm3d(_Renorm, BatchNorm3d, nn.BatchNorm3d):
    """:class:`BatchRenorm2d` for (N, C, D, H, W).

    >>> BatchRenorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


def _at(limit: float | Ramp, step: Any) -> Any:
    return limit.at(step) if isinstance(limit, Ramp) else limit
