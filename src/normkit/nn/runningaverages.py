"""Running mean and variance of a layer that pools across the batch, and how they are averaged."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.errors import StatisticsError, message
from normkit.kernels.call import Normalized
from normkit.nn import averages, stats_range
from normkit.nn.freezing import FrozenMixin
from normkit.nn.layer import Layer, step

__all__ = ["LayerTensors", "RunningAverages"]


class LayerTensors(NamedTuple):
    """Tensors of one forward pass: γ, β, running mean and variance, number of batches."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None


class RunningAverages(Layer):
    """Mixin: buffers ``running_mean``, ``running_var`` and ``num_batches_tracked``, averaged."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    momentum: Any

    _average: averages.Average = "exponential"

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

    @step
    def _layer_tensors(self) -> LayerTensors:
        """Return the tensors that this forward pass uses."""
        return LayerTensors(self.weight, self.bias, self.running_mean, self.running_var,
                            self.num_batches_tracked)  # fmt: skip

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
            # Of several processes, or behind a mask, a tensor holds the count.
            if isinstance(count, Tensor) and self.average != "exponential":
                tracked.add_((count > 0).to(tracked.dtype))
            else:
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
            if not isinstance(share, Tensor):
                share = torch.full((), share, dtype=wide, device=var.device)
            share, count = torch.where(count > 0, share, 0.0), count.clamp_min(2)
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
