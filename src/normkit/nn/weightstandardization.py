"""Convolutions whose weight is standardized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from normkit.core.formula import Spec
from normkit.core.pools import Pool, concrete
from normkit.errors import ShapeError, message
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.dispatch import normalize
from normkit.kernels.modes import recorded
from normkit.nn.arguments import ATTRIBUTES, Check
from normkit.nn.guards import GuardedWeight
from normkit.nn.inputs import check_eps, check_floating
from normkit.nn.layer import name_constructor
from normkit.nn.scripting import layer_as_namesake
from normkit.nn.symbolic import as_leaf

__all__ = [
    "WeightStandardized",
    "WeightStandardizedConv1d",
    "WeightStandardizedConv2d",
    "WeightStandardizedConv3d",
]


class WeightStandardized(nn.modules.conv._ConvNd):
    """Shared behaviour of these convolutions; subclasses fix the input rank."""

    weight = cast(Any, GuardedWeight())

    _plain: ClassVar[Any]
    _checked: ClassVar[dict[str, Check]] = {"eps": ATTRIBUTES["eps"]}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name_constructor(cls)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        convolution: Any = super().__init__
        convolution(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.eps = eps
        self._check_more_than_one()

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checked.get(name)
        value = value if check is None else check(type(self).__name__, name, value)
        super().__setattr__(name, value)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``input`` with the standardized weight."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, None)
        check_floating(cast(nn.Module, self), input)
        convolved: Tensor = self._conv_forward(input, self.standardized_weight(), self.bias)
        return convolved

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse ``torch.jit.script``, which asks this first."""
        return layer_as_namesake(self)

    def standardized_weight(self) -> Tensor:
        """Return the weight that ``forward`` convolves with, differentiably."""
        weight = self.weight
        check_eps(cast(nn.Module, self), self.eps, False)
        self._check_more_than_one()
        if recorded(weight):
            sizes = [concrete(size) for size in weight.shape[1:]]
            return functional.layer_norm(weight, sizes, eps=self.eps)
        rows = weight.reshape(weight.shape[0], -1)
        spec = Spec(Pool("group", 1), self.eps)
        y = normalize(Call(rows, spec, None, None, None, BatchStats())).y
        return y.reshape(weight.shape)

    def to_conv(self) -> Any:
        """Return the plain convolution of ``torch.nn`` that computes the same, for deployment.

        It has a weight of its own, which training would no longer standardize.
        """
        plain = self._plain(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, self.padding_mode,
            device="meta",
        )  # fmt: skip
        with torch.no_grad():
            plain.weight = nn.Parameter(self.standardized_weight().detach().clone())
            if self.bias is not None:
                plain.bias = nn.Parameter(self.bias.detach().clone())
        for name in ("weight", "bias"):
            if (mine := getattr(self, name)) is not None:
                getattr(plain, name).requires_grad_(mine.requires_grad)
        return plain.train(self.training)

    def _check_more_than_one(self) -> None:
        if all(concrete(size) == 1 for size in self.weight.shape[1:]):
            raise ShapeError(
                message(
                    f"more than 1 weight per filter of {type(self).__name__}",
                    f"a weight of shape {tuple(self.weight.shape)}, which standardized is 0",
                    f"use torch.nn.{self._plain.__name__}",
                )
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class WeightStandardizedConv1d(WeightStandardized, nn.Conv1d):
    """:class:`WeightStandardizedConv2d` for (N, C, L) and (C, L), as ``torch.nn.Conv1d``.

    >>> WeightStandardizedConv1d(3, 8, 5)(torch.randn(2, 3, 9)).shape
    torch.Size([2, 8, 5])
    """

    _plain = nn.Conv1d


class WeightStandardizedConv2d(WeightStandardized, nn.Conv2d):
    r"""Convolution of images with a standardized weight: ``torch.nn.Conv2d`` and its arguments.

    .. math::
        \hat W_o = \frac{W_o - \mu_o}{\sqrt{\sigma_o^2 + \epsilon}}

    with mean and biased variance over each filter, its input channels and positions. Keys and
    shapes in the ``state_dict`` are ``torch.nn.Conv2d``'s; the weight is kept as it is learned and
    standardized in each call, its moments in float32 or wider and in two passes. Used with group
    normalization where batches are small. It trains on; for deployment :meth:`to_conv` returns the
    plain convolution, which costs nothing more.

    timm's ``StdConv2d`` is the same. Its ``ScaledStdConv2d``, with a learned gain and a scale by
    the size of the filter, is another layer.

    Args:
        eps: added to the variance of a filter, keyword only; 1e-6, as in timm's models. Filters
            of many weights have small variances: about 2/n as they are initialized.
        The others as ``torch.nn.Conv2d``.

    Shape:
        as ``torch.nn.Conv2d``.

    Raises:
        ShapeError: a filter with a single weight, such as of a depthwise convolution of 1 × 1.
        OptionError: ``eps`` below 0, in forward.
        TypeMismatchError: ``torch.nn.utils.fusion`` or ``torch.utils.mkldnn`` reads the weight to
            put a convolution in its place that would not standardize it, or again.

    Source: Qiao et al. 2019, arXiv 1903.10520, equation 5.

    >>> conv = WeightStandardizedConv2d(3, 8, 3, padding=1, bias=False)
    >>> x = torch.randn(2, 3, 5, 5)
    >>> plain = conv.to_conv()
    >>> type(plain), torch.allclose(plain(x), conv(x), atol=1e-6)
    (<class 'torch.nn.modules.conv.Conv2d'>, True)
    """

    _plain = nn.Conv2d


class WeightStandardizedConv3d(WeightStandardized, nn.Conv3d):
    """:class:`WeightStandardizedConv2d` for (N, C, D, H, W), as ``torch.nn.Conv3d``.

    >>> WeightStandardizedConv3d(3, 8, 3)(torch.randn(2, 3, 4, 5, 6)).shape
    torch.Size([2, 8, 2, 3, 4])
    """

    _plain = nn.Conv3d
