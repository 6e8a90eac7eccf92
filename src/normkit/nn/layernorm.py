"""Layer and root mean square normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling

from normkit.core.activations import Act, ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_POSITION
from normkit.kernels import functions, fused
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.modes import autocast_wide
from normkit.nn.arguments import (
    CHANNEL_COUNT,
    Check,
    check_options,
    optional_eps,
    shape,
)
from normkit.nn.inputs import check_count, check_eps, check_rank, prepare
from normkit.nn.lastaxes import CENTRED, UNCENTRED, LastAxes, check_weight, over_last
from normkit.nn.layer import nested
from normkit.nn.symbolic import as_leaf

__all__ = ["LayerNorm", "LayerNorm2d", "RMSNorm"]

_AT_PIXELS = fused.signature("position", (4,))


class LayerNorm(LastAxes, nn.LayerNorm):
    r"""Layer normalization over the last axes: ``torch.nn.LayerNorm`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments (biased variance) are taken over the axes of ``normalized_shape``; γ and β have that
    shape. Training and evaluation are alike.

    Args:
        normalized_shape: sizes of the last axes, or the size of the last one.
        eps: added to the variance, in squared units of the input.
        elementwise_affine: learn γ and, unless ``bias=False``, β.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.
        memory_efficient: keep the output for the backward pass, not the input: the layer after it
            keeps the output anyway. Where it does not tell the input, in a call with a residual or
            where a γ is 0 or less than a quarter of its β, the input is kept. Gradients differ by
            a rounding of the output's type, and cannot be differentiated again.

    Shape:
        input, residual and output: (\*, normalized_shape).

    Raises:
        ShapeError: the input does not end in ``normalized_shape``.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act``, or one with ``memory_efficient``; ``eps`` below 0, in
            forward. Arguments are validated as
            :class:`normkit.BatchNorm1d`'s are.

    Source: Ba, Kiros & Hinton 2016, arXiv 1607.06450.

    >>> LayerNorm(2)(torch.tensor([[1.0, 3.0], [10.0, 30.0]])).detach()
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """

    _checked: ClassVar[dict[str, Check]] = {**LastAxes._checked, "normalized_shape": shape}

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
        memory_efficient: bool = False,
    ) -> None:
        check_options(self, device, dtype, bias)
        normalized_shape = shape(type(self).__name__, "normalized_shape", normalized_shape)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.act = act
        self._keep_output(memory_efficient)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if not (is_compiling() or self._keeps_output()):
            y = fused.layer(input, residual, self._parameters, None, CENTRED, 1,
                            self.normalized_shape, self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        return self._forward_with(self._act, input, residual)

    def _forward_with(self, act: Act | None, input: Tensor, residual: Tensor | None) -> Tensor:
        """Compute step by step, with ``act`` in place of the layer's activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        if isinstance(input, Tensor) and input.is_nested:
            return functions.finish(nn.LayerNorm.forward(self, input), residual, act)
        input, residual = prepare(self, input, residual)
        check_eps(self, self.eps, False)
        return over_last(self, input, residual, self.eps, self.weight, self.bias, True, act)


class LayerNorm2d(LayerNorm):
    """Layer normalization of the channels at each pixel, (N, C, H, W).

    What ConvNeXt calls LayerNorm: moments over C, separately at every position, γ and β per
    channel. The result of moving the channels last, applying :class:`LayerNorm` and moving them
    back, without the moving. Not the same as one group in :class:`normkit.GroupNorm`, which pools
    the positions too.

    Args:
        num_channels: number of channels C.
        eps: added to the variance; 1e-6, as in the source.
        elementwise_affine: learn γ and, unless ``bias=False``, β.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        ShapeError: another rank or number of channels.
        TypeMismatchError: not a floating-point tensor.

    Source: Liu et al. 2022 (ConvNeXt), arXiv 2201.03545.

    >>> y = LayerNorm2d(16)(torch.randn(2, 16, 4, 4))
    >>> bool(y.mean(1).abs().max() < 1e-5)
    True
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
    ) -> None:
        num_channels = CHANNEL_COUNT(type(self).__name__, "num_channels", num_channels)
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype, act=act)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if not is_compiling():
            y = fused.layer(input, residual, self._parameters, None, _AT_PIXELS, 1,
                            self.normalized_shape[0], self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, (4,), "(N, C, H, W)", "use LayerNorm where channels are last")
        input, residual = prepare(self, input, residual)
        check_weight(self)
        check_count(self, input, self.normalized_shape[0])
        check_eps(self, self.eps, False)
        x, rest = autocast_wide(input, residual)
        spec = Spec(PER_POSITION, self.eps, self._act)
        return self._normalize(Call(x, spec, self.weight, self.bias, rest, BatchStats())).y


class RMSNorm(LastAxes, nn.RMSNorm):
    r"""Root mean square normalization over the last axes: ``torch.nn.RMSNorm`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x}{\sqrt{\frac1n\sum x^2 + \epsilon}}
            + \mathrm{residual}\right)

    Layer normalization without centring and without β.

    Args:
        normalized_shape: sizes of the last axes, or the size of the last one.
        eps: added to the mean square; None for the machine epsilon of the type that sums are
            kept in: 2⁻²³ for float32 and the half types, 2⁻⁵² for float64.
        elementwise_affine: learn γ.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.
        memory_efficient: keep the output in place of the input, as in :class:`normkit.LayerNorm`.

    Shape:
        input, residual and output: (\*, normalized_shape).

    Raises:
        ShapeError: the input does not end in ``normalized_shape``.
        TypeMismatchError: not a floating-point tensor.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.

    >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    """

    _checked: ClassVar[dict[str, Check]] = {
        **LastAxes._checked,
        "normalized_shape": shape,
        "eps": optional_eps,
    }

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
        memory_efficient: bool = False,
    ) -> None:
        check_options(self, device, dtype)
        normalized_shape = shape(type(self).__name__, "normalized_shape", normalized_shape)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.act = act
        self._keep_output(memory_efficient)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``x``, add ``residual`` (same shape) if given, apply the activation."""
        if not (is_compiling() or self._keeps_output()):
            y = fused.layer(x, residual, self._parameters, None, UNCENTRED, 1,
                            self.normalized_shape, self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x, residual)
        if isinstance(x, Tensor) and x.is_nested:
            return nested(self, super().forward(x), residual)
        x, residual = prepare(self, x, residual)
        eps = torch.finfo(accumulator(x.dtype)).eps if self.eps is None else self.eps
        check_eps(self, eps, False)
        return over_last(self, x, residual, eps, self.weight, None, False, self._act)
