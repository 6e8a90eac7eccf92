"""Group normalization whose scale and shift are inputs."""

from __future__ import annotations

from torch import Tensor, fx

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.pools import Pool, as_ncs
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.modes import autocast_wide, transformed
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.inputs import check_batch_axis, check_count, check_eps, check_more_than_one, prepare
from normkit.nn.modulation import fitted, gamma, modulate, wide_type
from normkit.nn.symbolic import as_leaf

__all__ = ["AdaptiveGroupNorm"]


class AdaptiveGroupNorm(GroupNorm):
    r"""Group normalization with scale and shift as inputs, as in U-Nets of diffusion models.

    .. math::
        y = \mathrm{act}\left(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}\,
            (1 + \mathrm{scale}) + \mathrm{shift} + \mathrm{residual}\right)

    With as many groups as channels this is adaptive instance normalization (AdaIN) of a style. The
    layer itself learns nothing; scale and shift are passed by keyword, and without one of them its
    part is left out. Per channel and in contiguous memory all is computed in one operation.

    Args:
        num_groups: number of groups G; divides ``num_channels``.
        num_channels: number of channels C.
        eps: added to the variance, in squared units of the input.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, \*).
        scale and shift: (N, C); (C); or with the axes of the input, any but the channels of size
        1, so also a map of its own for each position (SPADE).

    Raises:
        ShapeError: the groups do not divide the channels; another number of channels; scale or
            shift of another shape.
        TypeMismatchError: not a floating-point tensor.

    Source: Dhariwal & Nichol 2021, arXiv 2105.05233; Huang & Belongie 2017 (AdaIN), arXiv
    1703.06868.

    >>> import torch
    >>> x, scale, shift = torch.randn(4, 6, 5, 5), torch.randn(4, 6), torch.randn(4, 6)
    >>> AdaptiveGroupNorm(2, 6, act="silu")(x, scale=scale, shift=shift).shape
    torch.Size([4, 6, 5, 5])
    """

    _beyond = ("scale and shift of each sample",)

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, *, act: ActLike = None
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine=False, act=act)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Normalize ``input``, scale and shift, add ``residual`` if given, apply the activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual, scale=scale, shift=shift)
        if scale is None and shift is None:
            return super().forward(input, residual)
        check_batch_axis(self, input)
        input, residual = prepare(self, input, residual)
        check_count(self, input, self.num_channels)
        features = (self.num_channels,)
        scale = fitted(self, "scale", scale, input, features, 1)
        shift = fitted(self, "shift", shift, input, features, 1)
        if (
            not transformed(input, residual, scale, shift)
            and _is_per_channel(scale)
            and _is_per_channel(shift)
            and input.is_contiguous()
            and input.numel() > 0
        ):
            return self._as_one_sample(input, residual, scale, shift)
        return modulate(self._forward_with(None, input, None), residual, self._act, scale, shift)

    def _as_one_sample(
        self, x: Tensor, residual: Tensor | None, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        """Compute as of one sample, whose channels are those of all samples in turn."""
        check_eps(self, self.eps, False)
        n, c, s = as_ncs(x)
        check_more_than_one(self, x, n * (c // self.num_groups) * s, "channel")
        wide, rest = autocast_wide(x, residual)
        acc = wide_type(wide, scale, shift)
        shape = (1, n * c, *x.shape[2:])
        per_sample = (n, c, *[1] * (x.dim() - 2))
        weight, bias = gamma(scale, acc), None if shift is None else shift.to(acc)
        weight, bias = (
            None if t is None else t.expand(per_sample).reshape(n * c) for t in (weight, bias)
        )
        rest = None if rest is None else rest.reshape(shape)
        spec = Spec(Pool("group", n * self.num_groups), self.eps, self._act)
        call = Call(wide.reshape(shape), spec, weight, bias, rest, BatchStats())
        return self._normalize(call).y.reshape(x.shape)

    def extra_repr(self) -> str:
        shown = f"{self.num_groups}, {self.num_channels}, eps={self.eps}"
        return shown if self.act is None else f"{shown}, act={self.act!r}"


def _is_per_channel(t: Tensor | None) -> bool:
    return t is None or all(size == 1 for size in t.shape[2:])
