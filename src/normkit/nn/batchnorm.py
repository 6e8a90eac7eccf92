"""Batch normalization: ``torch.nn``'s BatchNorm1d, 2d and 3d."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs
from normkit.kernels import fused
from normkit.kernels.autograd import Normalized, normalize
from normkit.kernels.native import Running
from normkit.nn import averages
from normkit.nn.layer import (
    Layer,
    as_leaf,
    check_count,
    check_eps,
    check_more_than_one,
    check_rank,
    prepare,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchStatistics",
    "Own",
]


class Own(NamedTuple):
    """A layer's tensors: γ, β, the mean, the variance and the number of batches behind them."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None


class BatchStatistics(Layer, _BatchNorm):
    """What every layer does that pools across the batch; its subclasses say which rank."""

    _average: averages.Average = "exponential"
    _kind: ClassVar[int] = fused.kind("batch", ())
    # Whether moments are taken over all samples of the batch, and no others.
    _whole: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
        average: averages.Average = "exponential",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.act = act
        self.average = average

    @property
    def average(self) -> averages.Average:
        """How moments are remembered; momentum 0 holds them still, whichever it is."""
        return self._average

    @average.setter
    def average(self, average: averages.Average) -> None:
        averages.check_average(average, self.momentum)
        self._average = average

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if self._usual and not is_compiling():
            y = self._at_once(input, residual)
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        self._check_input_dim(input)
        input, residual = prepare(self, input, residual)
        own = self._tensors()
        known = own.mean if own.weight is None else own.weight
        if known is not None:
            check_count(self, input, known.numel())
        batch_statistics = self.training or (own.mean is None and own.var is None)
        check_eps(self, self.eps, batch_statistics)
        if not batch_statistics:
            return self._by_memory(input, residual, own)
        moves = self.training and self.track_running_stats and self.counts()
        running = self._plain_average(input, own) if moves else None
        result = self._by_batch(input, residual, own, running)
        if moves:
            self._remember(result, own)
        return result.y

    def _tensors(self) -> Own:
        """Those that this call uses."""
        return Own(self.weight, self.bias, self.running_mean, self.running_var,
                   self.num_batches_tracked)  # fmt: skip

    def _at_once(
        self,
        input: Tensor,
        residual: Tensor | None,
        parameters: dict[str, Any] | None = None,
        buffers: dict[str, Any] | None = None,
    ) -> Tensor | None:
        """All of the above in one call, or None where something is not as usual."""
        memory, momentum, counted = fused.NONE, None, False
        if parameters is None or buffers is None:
            parameters, buffers = self._parameters, self._buffers
        if not self.training and buffers.get("running_mean") is not None:
            memory = fused.GIVEN
        elif not self._whole:
            return None
        elif self.training and self.track_running_stats:
            if self._average != "exponential":
                return None
            memory, momentum, counted = fused.MOVED, self.momentum, self._has_moved
        y = fused.layer(input, residual, parameters, buffers, self._kind, 1, None,
                        self.eps, self._act, memory, momentum, counted)  # fmt: skip
        if y is not None and memory == fused.MOVED and not counted:
            self.counts()
        return y

    def _by_memory(self, input: Tensor, residual: Tensor | None, own: Own) -> Tensor:
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        stats = (own.mean, own.var)
        return normalize(input, spec, own.weight, own.bias, residual, stats).y  # type: ignore[arg-type]

    def _plain_average(self, input: Tensor, own: Own) -> Running | None:
        """The buffers and the share to move them by, where a kernel can do that on its way."""
        mean, var, momentum = own.mean, own.var, self.momentum
        if self.average != "exponential" or momentum is None or mean is None or var is None:
            return None
        return (mean, var, momentum) if mean.dtype == accumulator(input.dtype) else None

    def _by_batch(
        self, input: Tensor, residual: Tensor | None, own: Own, running: Running | None
    ) -> Normalized:
        n, _, s = as_ncs(input)
        check_more_than_one(self, input, n * s, "channel")
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        return normalize(input, spec, own.weight, own.bias, residual, running=running)

    @torch.no_grad()
    def _remember(self, result: Normalized, own: Own) -> None:
        """Take the moments of this batch into the average; an empty batch has none."""
        mean, var, count = result.mean, result.var, result.values
        empty = isinstance(count, int) and count == 0
        taken: float | Tensor = self.momentum or 0.0
        # PyTorch counts empty batches, and so does what stands in for it. The averages it
        # does not have divide by the count, so there an empty batch must not.
        if own.tracked is not None and not (empty and self.average != "exponential"):
            own.tracked.add_(1)
        if mean is None or var is None or empty:
            return
        if own.tracked is not None:
            taken = averages.share(self.average, self.momentum, own.tracked)
        if isinstance(count, Tensor):
            # Counted across processes. Whether all were empty is not worth waiting for a
            # device; a step of length zero says the same.
            taken, count = taken * (count > 0).to(count.dtype), count.clamp_min(2)
        if own.mean is not None and own.var is not None:
            averages.step_towards(own.mean, mean, taken)
            # Biased to normalize with, unbiased to remember, as PyTorch does.
            averages.step_towards(own.var, var * (count / (count - 1)), taken)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.average == "exponential" else f"{shown}, average={self.average!r}"


class BatchNorm1d(BatchStatistics, nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L): ``torch.nn.BatchNorm1d`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments are taken per channel over samples and length. Training normalizes with those of the
    batch (biased variance) and remembers them (unbiased variance); evaluation normalizes with
    what was remembered.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        momentum: share of the remembered moments *replaced* by each batch; None for a
            cumulative average. The share kept is ``1 - momentum``.
        affine: learn γ (``weight``) and, unless ``bias=False``, β (``bias``).
        track_running_stats: remember moments; without, evaluation uses those of its batch.
        act: activation to apply: None, ``"relu"``, ``"silu"``, ``"gelu"``, ``"leaky_relu"`` or
            ``("leaky_relu", slope)``.
        average: how moments are remembered: ``"exponential"``, ``"cumulative"`` or
            ``"debiased"`` (:mod:`normkit.nn.averages`).

    Note:
        Tools made for ``torch.nn``'s layers do not know ``act`` and ``average``:
        ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` drops both without a word, as
        ``torch.nn.utils.fusion`` drops ``act``. ``normkit.SyncBatchNorm`` keeps them.

    Shape:
        input, residual and output: (N, C) or (N, C, L).

    Raises:
        ShapeError: another rank or number of channels; a single value per channel in training.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act`` or ``average``.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> layer = BatchNorm1d(3, act="relu")
    >>> layer(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).detach()
    tensor([[0.0000, 0.0000, 1.0000],
            [1.0000, 0.0000, 0.0000]])
    >>> layer.running_mean
    tensor([0.2000, 0.2000, 0.2000])
    """

    _ranks = (2, 3)
    _kind = fused.kind("batch", _ranks)

    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(N, C) or (N, C, L)", "use BatchNorm2d for images")


class BatchNorm2d(BatchStatistics, nn.BatchNorm2d):
    """Batch normalization of images, (N, C, H, W): ``torch.nn.BatchNorm2d`` and more.

    Formula, arguments and errors as :class:`BatchNorm1d`; moments are taken per channel over
    samples, height and width. Channels-last input gives channels-last output.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> layer = BatchNorm2d(8, act="relu")
    >>> x = torch.randn(4, 8, 5, 5)
    >>> layer(x, residual=x).shape
    torch.Size([4, 8, 5, 5])
    """

    _ranks = (4,)
    _kind = fused.kind("batch", _ranks)

    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(N, C, H, W)", "add the missing axis, or use BatchNorm1d"
        )


class BatchNorm3d(BatchStatistics, nn.BatchNorm3d):
    """Batch normalization of volumes, (N, C, D, H, W): ``torch.nn.BatchNorm3d`` and more.

    Formula, arguments and errors as :class:`BatchNorm1d`; moments are taken per channel over
    samples, depth, height and width.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> BatchNorm3d(2)(torch.randn(2, 2, 3, 4, 4)).shape
    torch.Size([2, 2, 3, 4, 4])
    """

    _ranks = (5,)
    _kind = fused.kind("batch", _ranks)

    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(N, C, D, H, W)", "add the missing axis, or use BatchNorm2d"
        )
