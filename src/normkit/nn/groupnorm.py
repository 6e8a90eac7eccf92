"""Group normalization."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, fx, nn
from torch.compiler import is_compiling

from normkit.compat import OptionalBias
from normkit.core.activations import Act, ActLike
from normkit.core.formula import Spec
from normkit.core.pools import Pool, as_ncs, concrete
from normkit.errors import ShapeError, message
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.modes import autocast_wide
from normkit.nn.arguments import ATTRIBUTES, CHANNEL_COUNT, Check, at_least, check_options
from normkit.nn.inputs import (
    check_batch_axis,
    check_channels,
    check_eps,
    check_more_than_one,
    prepare,
)
from normkit.nn.layer import Layer
from normkit.nn.symbolic import as_leaf

__all__ = ["GroupNorm"]

_SIGNATURE = fused.signature("group", range(2, 33))
_GROUPS = at_least(1, "use 1 for all channels together", ShapeError, "the number of groups, ")


class GroupNorm(Layer, OptionalBias, nn.GroupNorm):
    r"""Group normalization of (N, C, \*): ``torch.nn.GroupNorm`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments (biased variance) are taken over each group of C / G neighbouring channels and all
    positions of a sample, in training and evaluation alike. One group pools the whole sample, C
    groups make it instance normalization.

    Args:
        num_groups: number of groups G; divides ``num_channels``.
        num_channels: number of channels C.
        eps: added to the variance, in squared units of the input.
        affine: learn γ and, unless ``bias=False``, β, one per channel.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, \*).

    Raises:
        ShapeError: the groups do not divide the channels; fewer than two axes; another number of
            channels.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act``; ``eps`` below 0, in forward. Arguments are validated as
            :class:`normkit.BatchNorm1d`'s are.

    Source: Wu & He 2018, arXiv 1803.08494.

    >>> import torch
    >>> GroupNorm(2, 6, act="silu")(torch.randn(4, 6, 5, 5)).shape
    torch.Size([4, 6, 5, 5])
    """

    _checked: ClassVar[dict[str, Check]] = {
        **ATTRIBUTES,
        "num_groups": _GROUPS,
        "num_channels": CHANNEL_COUNT,
    }

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
    ) -> None:
        check_options(self, device, dtype, bias)
        self.num_groups, self.num_channels = num_groups, num_channels
        if self.num_channels % self.num_groups != 0:
            raise ShapeError(_uneven(self.num_channels, self.num_groups))
        super().__init__(self.num_groups, self.num_channels, eps, affine, device, dtype, bias=bias)
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if not is_compiling():
            y = fused.layer(input, residual, self._parameters, None, _SIGNATURE, self.num_groups,
                            None, self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        return self._forward_with(self._act, input, residual)

    def _forward_with(self, act: Act | None, input: Tensor, residual: Tensor | None) -> Tensor:
        """Compute step by step, with ``act`` in place of the layer's activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_batch_axis(self, input)
        input, residual = prepare(self, input, residual)
        check_channels(self, input, self.weight)
        check_eps(self, self.eps, False)
        n, c, s = as_ncs(input)
        if concrete(c) % self.num_groups:
            raise ShapeError(_uneven(c, self.num_groups))
        check_more_than_one(self, input, n * (c // self.num_groups) * s, "channel")
        x, rest = autocast_wide(input, residual)
        spec = Spec(Pool("group", self.num_groups), self.eps, act)
        return self._normalize(Call(x, spec, self.weight, self.bias, rest, BatchStats())).y


def _uneven(channels: int, groups: int) -> str:
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    return message(
        # The words of torch.nn's error, which its own tests look for.
        f"groups of equal size: num_channels ({channels}) must be divisible by num_groups "
        f"({groups})",
        f"{groups} groups for {channels} channels",
        f"use one of {divisors} groups",
    )
