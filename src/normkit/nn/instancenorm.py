"""Instance normalization: ``torch.nn``'s InstanceNorm1d, 2d and 3d, and their lazy forms."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, Pool, as_ncs, concrete
from normkit.kernels import fused
from normkit.kernels.call import Call, FixedStats, Normalized
from normkit.kernels.functions import finish, fits
from normkit.kernels.fused import Stats
from normkit.kernels.modes import recorded, transformed
from normkit.nn import averages
from normkit.nn.arguments import CHANNEL_COUNT, Check, check_options, unused_size
from normkit.nn.inputs import check_channels, check_eps, check_more_than_one, check_rank, prepare
from normkit.nn.layer import Layer, as_leaf, step

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


class _Instance(Layer, _InstanceNorm):
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
        unbatched = input.dim() == self._get_no_batch_dim()
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
        if unbatched:
            input = input.unsqueeze(0)
            residual = None if residual is None else residual.unsqueeze(0)
        y = self._by_function(input, residual)
        if y is None:
            y = self._batched(input, residual)
        return y.squeeze(0) if unbatched else y

    def _fused_forward(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """Compute all of the above in one call, or return None where something is unusual."""
        stats = Stats.FIXED if self.track_running_stats and not self.training else Stats.NONE
        return fused.layer(input, residual, self._parameters, self._buffers,
                           self._kernel_signature, None, None if self.affine else self.num_features,
                           self.eps, self._act, stats)  # fmt: skip

    def _by_function(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """Compute by the function of ``torch.nn``'s layer if a tool looks for it and it fits."""
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
        z = functional.instance_norm(
            input, *running, *affine, from_input, self.momentum or 0.0, self.eps
        )
        return finish(z, residual, self._act)

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
        call = Call(input, spec, weight, bias, residual, wants_moments=updates)
        result = self._normalize(call)
        if updates:
            self._update_running_stats(result, n, c, s)
        return result.y

    @step
    @torch.no_grad()
    def _update_running_stats(self, result: Normalized, n: int, c: int, s: int) -> None:
        """Average the samples' moments into the buffers; PyTorch counts no batches here."""
        share = self.momentum or 0.0
        if result.mean is None or result.var is None:
            return
        mean = result.mean.reshape(n, c).mean(0)
        var = averages.unbiased(result.var.reshape(n, c).mean(0), s)
        if self.running_mean is not None and self.running_var is not None:
            averages.step_towards(self.running_mean, mean, share)
            averages.step_towards(self.running_var, var, share)


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):
    r"""Instance normalization of (N, C, L) or (C, L): ``torch.nn.InstanceNorm1d`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments (biased variance) are taken per sample and channel over the length, in training and
    in evaluation. With ``track_running_stats`` evaluation uses their running averages.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        momentum: share of the running averages replaced by each batch.
        affine: learn γ and, unless ``bias=False``, β. Off by default, as in PyTorch.
        track_running_stats: keep running averages for evaluation. Off by default.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, L) or (C, L).

    Raises:
        ShapeError: another rank or number of channels; a single position.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act``; ``eps`` below 0, in forward. Arguments are validated as
            :class:`normkit.BatchNorm1d`'s are.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.

    >>> InstanceNorm1d(2)(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    tensor([[[-1.0000,  1.0000],
             [ 0.0000,  0.0000]]])
    """

    _ranks = (2, 3)
    _kernel_signature = fused.signature("group", _ranks[1:])

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(C, L) or (N, C, L)", "use InstanceNorm2d for images")


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):
    """Instance normalization of (N, C, H, W) or (C, H, W): ``torch.nn.InstanceNorm2d`` and more.

    Formula, arguments and errors as :class:`InstanceNorm1d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.

    >>> InstanceNorm2d(3, affine=True, act="relu")(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    _ranks = (3, 4)
    _kernel_signature = fused.signature("group", _ranks[1:])

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(C, H, W) or (N, C, H, W)", "add the missing axis")


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W), as ``torch.nn.InstanceNorm3d``.

    Formula, arguments and errors as :class:`InstanceNorm1d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.

    >>> InstanceNorm3d(3)(torch.randn(2, 3, 2, 4, 4)).shape
    torch.Size([2, 3, 2, 4, 4])
    """

    _ranks = (4, 5)
    _kernel_signature = fused.signature("group", _ranks[1:])

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(C, D, H, W) or (N, C, D, H, W)", "add the missing axis"
        )


class _Lazy(_Instance):
    """Constructor of the lazy forms: all but ``num_features``, which the first input gives."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
    ) -> None:
        check_options(self, device, dtype, bias)
        # The next class is torch.nn's lazy one, which has no num_features.
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)  # type: ignore[arg-type]
        self.act = act


class LazyInstanceNorm1d(_Lazy, nn.LazyInstanceNorm1d, InstanceNorm1d):
    """:class:`InstanceNorm1d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm1d
    _check_input_dim = InstanceNorm1d._check_input_dim


class LazyInstanceNorm2d(_Lazy, nn.LazyInstanceNorm2d, InstanceNorm2d):
    """:class:`InstanceNorm2d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm2d
    _check_input_dim = InstanceNorm2d._check_input_dim


class LazyInstanceNorm3d(_Lazy, nn.LazyInstanceNorm3d, InstanceNorm3d):
    """:class:`InstanceNorm3d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm3d
    _check_input_dim = InstanceNorm3d._check_input_dim
