"""Base of layers that pool across the batch: what they normalize by, and what they remember."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.compat import OptionalBias
from normkit.core.activations import Act, ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, as_ncs
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized
from normkit.kernels.fused import Stats
from normkit.kernels.modes import exporting
from normkit.nn import averages
from normkit.nn.arguments import check_options
from normkit.nn.guards import GuardedVariance
from normkit.nn.inputs import check_channels, check_eps, check_more_than_one, prepare
from normkit.nn.layer import step
from normkit.nn.runningaverages import LayerTensors, RunningAverages
from normkit.nn.symbolic import as_leaf

__all__ = ["BatchStatistics", "LayerTensors"]


class BatchStatistics(RunningAverages, OptionalBias, _BatchNorm):
    """Shared behaviour of layers that pool across the batch; subclasses fix the input rank."""

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
        stats, momentum, updated, parts = Stats.NONE, None, False, 1
        if parameters is None or buffers is None:
            parameters, buffers = self._parameters, self._buffers
        if not self.training and buffers.get("running_mean") is not None:
            stats = Stats.FIXED
        else:
            if not self._pools_whole_batch and (parts := self._equal_parts(input)) == 0:
                return None
            if self.training and self.track_running_stats:
                stats, momentum, updated = Stats.UPDATE, self.momentum, self._stats_updated
        y = fused.layer(input, residual, parameters, buffers, self._kernel_signature, parts, None,
                        self.eps, self._act, stats, momentum, updated, self._average)  # fmt: skip
        if not updated and y is not None and stats == Stats.UPDATE:
            self.updates_stats()
        return y

    def _equal_parts(self, input: Any) -> int:
        """Return the number of parts of one size that are normalized each by itself, or 0."""
        return 0

    def _update_in_kernel(
        self, mean: Tensor | None, var: Tensor | None, dtype: torch.dtype
    ) -> BatchStats:
        """Return the batch's statistics, with the buffers that a kernel may update as it goes."""
        if mean is None or var is None:
            return BatchStats()
        simple = self._average == "exponential" and mean.dtype == accumulator(dtype)
        update = None if self.momentum is None or not simple else (mean, var, self.momentum)
        return BatchStats(update, (mean, var))

    @step
    def _forward_batch_stats(self, call: Call, tensors: LayerTensors) -> Normalized:
        """Normalize with the moments of the batch; subclasses change ``call`` first."""
        n, _, s = as_ncs(call.x)
        check_more_than_one(self, call.x, n * s, "channel")
        return self._normalize(call)
