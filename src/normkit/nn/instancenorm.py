"""Instance normalization: ``torch.nn``'s InstanceNorm1d, 2d and 3d, and their lazy forms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normkit.compat import LazyOptionalBias
from normkit.core.activations import ActLike
from normkit.kernels import fused
from normkit.nn.arguments import check_options
from normkit.nn.inputs import check_rank
from normkit.nn.instancestatistics import InstanceStatistics
from normkit.nn.layer import step

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


class InstanceNorm1d(InstanceStatistics, nn.InstanceNorm1d):
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

    >>> import torch
    >>> InstanceNorm1d(2)(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    tensor([[[-1.0000,  1.0000],
             [ 0.0000,  0.0000]]])
    """

    _ranks = (2, 3)
    _kernel_signature = fused.signature("group", _ranks[1:])

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(C, L) or (N, C, L)", "use InstanceNorm2d for images")


class InstanceNorm2d(InstanceStatistics, nn.InstanceNorm2d):
    """Instance normalization of (N, C, H, W) or (C, H, W): ``torch.nn.InstanceNorm2d`` and more.

    Formula, arguments and errors as :class:`InstanceNorm1d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.

    >>> import torch
    >>> InstanceNorm2d(3, affine=True, act="relu")(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    _ranks = (3, 4)
    _kernel_signature = fused.signature("group", _ranks[1:])

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(C, H, W) or (N, C, H, W)", "add the missing axis")


class InstanceNorm3d(InstanceStatistics, nn.InstanceNorm3d):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W), as ``torch.nn.InstanceNorm3d``.

    Formula, arguments and errors as :class:`InstanceNorm1d`.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022.

    >>> import torch
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


class _Lazy(LazyOptionalBias, InstanceStatistics):
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
        # torch.nn's lazy class has no num_features.
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
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
