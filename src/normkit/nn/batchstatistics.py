"""Base of layers that pool across the batch: what they normalize by, and what they remember."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.compat import OptionalBias
from normkit.core.activations import Act, ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs
from normkit.errors import StatisticsError, message
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized
from normkit.kernels.fused import Stats
from normkit.kernels.modes import exporting
from normkit.nn import averages, stats_range
from normkit.nn.arguments import check_options
from normkit.nn.freezing import FrozenMixin
from normkit.nn.guards import GuardedVariance
from normkit.nn.inputs import check_channels, check_eps, check_more_than_one, prepare
from normkit.nn.layer import Layer, step
from normkit.nn.symbolic import as_leaf

__all__ = ["BatchStatistics", "LayerTensors"]


class LayerTensors(NamedTuple):
    """Tensors of one forward pass: γ, β, running mean and variance, number of batches."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None


class BatchStatistics(Layer, OptionalBias, _BatchNorm):
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
        """Kind of running average; with momentum 0 statistics stay, whichever it is."""
        return self._average

    @average.setter
    def average(self, average: averages.Average) -> None:
        averages.check_average(average, self.momentum)
        self._average = average

    @property
    def _averages_by_count(self) -> bool:
        """True if statistics are updated by a share that depends on the number of batches."""
        counts = self.momentum is None or self._average != "exponential"
        return counts and self.momentum != 0 and not isinstance(self, FrozenMixin)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if self._fast_path_ok and not is_compiling():
            y = self._fused_forward(input, residual)
            if y is not None:
                return y
        return self._forward_with(self._act, input, residual)

    def _forward_with(self, act: Act | None, input: Tensor, residual: Tensor | None) -> Tensor:
        """Compute step by step, with ``act`` in place of the layer's activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        self._check_input_dim(input)
        input, residual = prepare(self, input, residual)
        tensors = self._layer_tensors()
        weight, bias, mean, var, _ = tensors
        check_channels(self, input, weight, mean)
        from_batch = self.training or (mean is None and var is None)
        check_eps(self, self.eps, from_batch)
        spec = Spec(PER_CHANNEL, self.eps, act)
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
        if self._averages_by_count:
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
        if mean is None or var is None or empty:
            mean = var = None
        elif stats_range.may_exceed(mean, var, tensors.mean):
            self._check_range(mean, var, count, tensors)
        # PyTorch counts empty batches, and so does its drop-in. The averages that PyTorch lacks
        # divide by the count, so there an empty batch must not count.
        if tracked is not None and not (empty and self.average != "exponential"):
            tracked.add_(1)
        if mean is not None and var is not None:
            # Not around all of this: an exported graph would hold a block for nothing.
            with torch.no_grad():
                self._average_moments(mean, var, count, tensors)

    @torch.no_grad()
    def _check_range(
        self, mean: Tensor, var: Tensor, count: int | Tensor, tensors: LayerTensors
    ) -> None:
        """Raise if the update that follows does not fit the buffers, before it changes any."""
        if tensors.mean is None or tensors.var is None:
            return
        before = tensors.mean, tensors.var
        after = stats_range.in_float64(before)
        tracked = None if tensors.tracked is None else tensors.tracked + 1
        wide = LayerTensors(tensors.weight, tensors.bias, *after, tracked)
        self._average_moments(mean.double(), var.double(), count, wide)
        stats_range.check_update(type(self).__name__, before, after, var)

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
        if self._averages_by_count and prefix + "running_mean" in state_dict:
            averages.warn_if_uncounted(self, prefix)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.average == "exponential" else f"{shown}, average={self.average!r}"
