"""Batch normalization: ``torch.nn``'s BatchNorm1d, 2d and 3d."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs
from normkit.errors import StatisticsError, message
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized
from normkit.kernels.fused import Stats
from normkit.kernels.modes import exporting
from normkit.nn import averages
from normkit.nn.arguments import check_options
from normkit.nn.guards import GuardedVariance
from normkit.nn.inputs import check_channels, check_eps, check_more_than_one, check_rank, prepare
from normkit.nn.layer import Layer, as_leaf, step

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchStatistics",
    "LayerTensors",
]


class LayerTensors(NamedTuple):
    """The tensors of one forward pass: γ, β, running mean and variance, number of batches."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None


class BatchStatistics(Layer, _BatchNorm):
    """Shared behaviour of layers that pool across the batch; subclasses fix the input rank."""

    _average: averages.Average = "exponential"
    _kernel_signature: ClassVar[int] = fused.signature("batch", ())
    # Whether training takes moments over all samples of the batch, and no others.
    _pools_whole_batch: ClassVar[bool] = True
    running_var = cast(Any, GuardedVariance())

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
        check_options(self, device, dtype, bias)
        # PyTorch takes None where no tensor has that many elements.
        unused = num_features is None and not (affine or track_running_stats)
        super().__init__(
            0 if unused else num_features,
            eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
        )  # fmt: skip
        if unused:
            vars(self)["num_features"] = None
        self.act = act
        self.average = average

    @property
    def average(self) -> averages.Average:
        """The kind of running average; with momentum 0 statistics stay, whichever it is."""
        return self._average

    @average.setter
    def average(self, average: averages.Average) -> None:
        averages.check_average(average, self.momentum)
        self._average = average

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if self._fast_path_ok and not is_compiling():
            y = self._fused_forward(input, residual)
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        self._check_input_dim(input)
        input, residual = prepare(self, input, residual)
        tensors = self._layer_tensors()
        weight, bias, mean, var, _ = tensors
        check_channels(self, input, weight, mean)
        from_batch = self.training or (mean is None and var is None)
        check_eps(self, self.eps, from_batch)
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        if not from_batch:
            fixed = FixedStats(mean, var)  # type: ignore[arg-type]
            return self._normalize(Call(input, spec, weight, bias, residual, fixed)).y
        updates = self.training and self.track_running_stats and self.updates_stats()
        if updates and exporting():
            self._warn_if_counting()
        stats = self._update_in_kernel(mean, var, input.dtype) if updates else BatchStats()
        call = Call(input, spec, weight, bias, residual, stats, wants_moments=updates)
        result = self._forward_batch_stats(call, tensors)
        if updates:
            self._update_running_stats(result, tensors)
        return result.y

    def _fused_forward(
        self,
        input: Tensor,
        residual: Tensor | None,
        parameters: dict[str, Any] | None = None,
        buffers: dict[str, Any] | None = None,
    ) -> Tensor | None:
        """Compute all of the above in one call, or return None where something is unusual."""
        stats, momentum, updated = Stats.NONE, None, False
        if parameters is None or buffers is None:
            parameters, buffers = self._parameters, self._buffers
        if not self.training and buffers.get("running_mean") is not None:
            stats = Stats.FIXED
        elif not self._pools_whole_batch:
            return None
        elif self.training and self.track_running_stats:
            if self._average != "exponential":
                return None
            stats, momentum, updated = Stats.UPDATE, self.momentum, self._stats_updated
            if momentum.__class__ is int:  # shown as passed; the kernel takes floats alone
                momentum = float(momentum)
        y = fused.layer(input, residual, parameters, buffers, self._kernel_signature, 1, None,
                        self.eps, self._act, stats, momentum, updated)  # fmt: skip
        if y is not None and stats == Stats.UPDATE and not updated:
            self.updates_stats()
        return y

    @step
    def _layer_tensors(self) -> LayerTensors:
        """Return the tensors that this forward pass uses."""
        return LayerTensors(self.weight, self.bias, self.running_mean, self.running_var,
                            self.num_batches_tracked)  # fmt: skip

    def _update_in_kernel(
        self, mean: Tensor | None, var: Tensor | None, dtype: torch.dtype
    ) -> BatchStats:
        """Return the batch's statistics, with the buffers that a kernel may update as it goes."""
        if mean is None or var is None:
            return BatchStats()
        simple = self._average == "exponential" and mean.dtype == accumulator(dtype)
        update = None if self.momentum is None or not simple else (mean, var, self.momentum)
        return BatchStats(update, (mean, var))

    def _warn_if_counting(self) -> None:
        """Warn that an exported graph goes on counting batches after a switch to evaluation."""
        if (self.momentum is None or self._average != "exponential") and self.momentum != 0:
            warnings.warn(
                f"{type(self).__name__} is exported in training mode with an average by the number "
                "of batches: move_exported_model_to_eval and its like leave the graph counting, so "
                "that in training again each batch weighs too little; export model.eval() for "
                "evaluation",
                stacklevel=2,
            )

    @step
    def _forward_batch_stats(self, call: Call, tensors: LayerTensors) -> Normalized:
        """Normalize with the moments of the batch; subclasses change ``call`` first."""
        n, _, s = as_ncs(call.x)
        check_more_than_one(self, call.x, n * s, "channel")
        return self._normalize(call)

    @step
    def _update_running_stats(self, result: Normalized, tensors: LayerTensors) -> None:
        """Average the moments of this batch into the buffers; an empty batch has none."""
        (_, mean, var, count), tracked = result, tensors.tracked
        if tracked is None and self._average != "exponential" and mean is not None:
            raise StatisticsError(
                message(
                    f"num_batches_tracked of {type(self).__name__}, by which "
                    f"average={self._average!r} weighs each batch",
                    "num_batches_tracked=None",
                    "restore the buffer, or use average='exponential'",
                )
            )
        empty = isinstance(count, int) and count == 0
        # PyTorch counts empty batches, and so does its drop-in. The averages that PyTorch lacks
        # divide by the count, so there an empty batch must not count.
        if tracked is not None and not (empty and self.average != "exponential"):
            tracked.add_(1)
        if mean is not None and var is not None and not empty:
            # Not around all of this: an exported graph would hold a block for nothing.
            with torch.no_grad():
                self._average_moments(mean, var, count, tensors)

    def _average_moments(
        self, mean: Tensor, var: Tensor, count: int | Tensor, tensors: LayerTensors
    ) -> None:
        share: float | Tensor = self.momentum or 0.0
        wide = torch.promote_types(torch.float32, mean.dtype)
        if tensors.tracked is not None:
            share = averages.share(self.average, self.momentum, tensors.tracked, wide)
        if isinstance(count, Tensor):
            # Counted across processes. If all were empty the step has length zero, so that no
            # device has to be waited for.
            share, count = share * (count > 0).to(wide), count.clamp_min(2)
        if tensors.mean is not None and tensors.var is not None:
            averages.step_towards(tensors.mean, mean, share)
            # Biased to normalize with, unbiased to remember, as PyTorch does.
            averages.step_towards(tensors.var, averages.unbiased(var, count), share)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        counts = self.momentum is None or self._average != "exponential"
        if counts and prefix + "running_mean" in state_dict:
            averages.warn_if_uncounted(self, prefix)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.average == "exponential" else f"{shown}, average={self.average!r}"


class BatchNorm1d(BatchStatistics, nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L): ``torch.nn.BatchNorm1d`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments are taken per channel over samples and length. Training normalizes with those of the
    batch (biased variance) and averages them (unbiased variance); evaluation normalizes with
    the running averages.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        momentum: share of the running averages *replaced* by each batch; None implies
            ``average="cumulative"``, as in PyTorch. The share kept is ``1 - momentum``.
        affine: learn γ (``weight``) and, unless ``bias=False``, β (``bias``).
        track_running_stats: keep running averages; without, evaluation uses its batch.
        act: activation to apply: None, ``"relu"``, ``"silu"``, ``"gelu"``, ``"leaky_relu"``,
            ``("leaky_relu", slope)``, or the module of ``torch.nn`` for one of these, whose options
            are read at once: ``nn.LeakyReLU(0.2)``.
        average: kind of running average: ``"exponential"``, ``"cumulative"`` or
            ``"debiased"`` (:mod:`normkit.nn.averages`).

    Note:
        Tools for ``torch.nn``'s layers do not know ``act`` and ``average``. A layer with either
        refuses ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which would drop it, and one with
        ``act`` refuses ``torch.nn.utils.fusion``; ``normkit.SyncBatchNorm`` keeps both. Every
        layer refuses ``torch.jit.script``.

    Shape:
        input, residual and output: (N, C) or (N, C, L).

    Raises:
        ShapeError: another rank or number of channels; a single value per channel in training.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act`` or ``average``; ``momentum`` outside 0 to 1; ``eps`` below 0,
            in forward.
        Arguments of a wrong type or value raise at construction and when they are assigned.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> layer = BatchNorm1d(3, act="relu")
    >>> layer(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).detach()
    tensor([[0.0000, 0.0000, 1.0000],
            [1.0000, 0.0000, 0.0000]])
    >>> layer.running_mean
    tensor([0.2000, 0.2000, 0.2000])
    """

    _ranks = (2, 3)
    _kernel_signature = fused.signature("batch", _ranks)

    @step
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
    _kernel_signature = fused.signature("batch", _ranks)

    @step
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
    _kernel_signature = fused.signature("batch", _ranks)

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(N, C, D, H, W)", "add the missing axis, or use BatchNorm2d"
        )
