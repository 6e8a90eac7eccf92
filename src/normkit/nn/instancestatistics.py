"""Base of instance normalization: what it normalizes by, and what it remembers."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.compiler import is_compiling
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.compat import OptionalBias
from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, Pool, as_ncs, concrete
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized
from normkit.kernels.functions import finish, fits
from normkit.kernels.fused import Stats
from normkit.kernels.modes import recorded, transformed
from normkit.nn import averages, stats_range
from normkit.nn.arguments import CHANNEL_COUNT, Check, check_options, unused_size
from normkit.nn.inputs import check_channels, check_eps, check_more_than_one, prepare
from normkit.nn.layer import Layer, step
from normkit.nn.symbolic import as_leaf

__all__ = ["InstanceStatistics"]


class InstanceStatistics(Layer, OptionalBias, _InstanceNorm):
    """Shared behaviour of layers that pool each channel of a sample; subclasses fix the rank."""

    _ranks: ClassVar[tuple[int, int]]  # without and with a batch axis
    _kernel_signature: ClassVar[int]  # with a batch axis
    _checked: ClassVar[dict[str, Check]] = {**Layer._checked, "num_features": unused_size}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
    ) -> None:
        check_options(self, device, dtype, bias)
        if num_features is None and (affine or track_running_stats):
            CHANNEL_COUNT(type(self).__name__, "num_features", num_features)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.act = act

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
        unbatched = input.dim() == self._ranks[0]
        channels = 0 if unbatched else 1
        check_channels(self, input, self.weight, self.running_mean, channels)
        if not self.affine and self.num_features not in (None, concrete(input.shape[channels])):
            warnings.warn(
                f"input's size at dim={channels} does not match num_features. "
                "You can silence this warning by not passing in num_features, "
                "which is not used because affine=False",
                stacklevel=2,
            )
        check_eps(self, self.eps, False)
        samples = input.unsqueeze(0) if unbatched else input
        z = self._by_function(samples, residual)
        if z is not None:
            return finish(z.squeeze(0) if unbatched else z, residual, self._act)
        if residual is not None and unbatched:
            residual = residual.unsqueeze(0)
        y = self._batched(samples, residual)
        return y.squeeze(0) if unbatched else y

    def _fused_forward(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """Compute all of the above in one call, or return None where something is unusual."""
        stats = Stats.FIXED if self.track_running_stats and not self.training else Stats.NONE
        return fused.layer(input, residual, self._parameters, self._buffers,
                           self._kernel_signature, None, None if self.affine else self.num_features,
                           self.eps, self._act, stats)  # fmt: skip

    def _by_function(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """Normalize by the function of ``torch.nn``'s layer if a tool looks for it and it fits."""
        from_input = self.training or not self.track_running_stats
        running = self.running_mean, self.running_var
        affine = self.weight, self.bias
        # Inside torch.func PyTorch's function may move buffers where single operations may not.
        moves = self.training and running[0] is not None and not is_compiling()
        if not (
            recorded(input, residual, *affine) or (moves and transformed(input, residual, *affine))
        ):
            return None
        # Of no samples PyTorch's function would average NaN into the buffers.
        if concrete(input.numel()) == 0 or not fits(input, *affine, *running):
            return None
        if from_input and running[0] is not None and not self.updates_stats():
            running = None, None
        return functional.instance_norm(
            input, *running, *affine, from_input, self.momentum or 0.0, self.eps
        )

    @step
    def _batched(self, input: Tensor, residual: Tensor | None) -> Tensor:
        n, c, s = as_ncs(input)
        c = concrete(c)
        weight, bias = self.weight, self.bias
        if not self.training and self.track_running_stats:
            fixed = FixedStats(self.running_mean, self.running_var)  # type: ignore[arg-type]
            spec = Spec(PER_CHANNEL, self.eps, self._act)
            return self._normalize(Call(input, spec, weight, bias, residual, fixed)).y
        check_more_than_one(self, input, s, "channel and sample (spatial element)")
        spec = Spec(Pool("group", max(c, 1)), self.eps, self._act)
        updates = self.running_mean is not None and concrete(n * s) > 0 and self.updates_stats()
        call = Call(input, spec, weight, bias, residual, BatchStats(), wants_moments=updates)
        result = self._normalize(call)
        if updates:
            self._update_running_stats(result, n, c, s)
        return result.y

    @step
    @torch.no_grad()
    def _update_running_stats(self, result: Normalized, n: int, c: int, s: int) -> None:
        """Average the samples' moments into the buffers; PyTorch counts no batches here."""
        if result.mean is not None and result.var is not None:
            mean, var = (t.reshape(n, c).mean(0) for t in (result.mean, result.var))
            self._average_moments(mean, averages.unbiased(var, s), var, self.momentum or 0.0)

    def _average_moments(
        self, mean: Tensor, unbiased: Tensor, var: Tensor, share: float | Tensor
    ) -> None:
        """Move the buffers towards ``mean`` and ``unbiased``; ``var`` is the biased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        before = self.running_mean, self.running_var
        if stats_range.may_exceed(mean, var, self.running_mean):
            after = stats_range.in_float64(before)
            for running, value in zip(after, (mean, unbiased), strict=True):
                averages.step_towards(running, value, share)
            stats_range.check_update(type(self).__name__, before, after, var)
        for running, value in zip(before, (mean, unbiased), strict=True):
            averages.step_towards(running, value, share)
