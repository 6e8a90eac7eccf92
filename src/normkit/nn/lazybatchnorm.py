"""Batch normalization whose number of channels is that of its first input."""

from __future__ import annotations

from typing import Any

from torch import nn

from normkit.compat import LazyOptionalBias
from normkit.core.activations import ActLike
from normkit.nn import averages
from normkit.nn.arguments import check_options
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.batchstatistics import BatchStatistics

__all__ = ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"]


class _Lazy(LazyOptionalBias, BatchStatistics):
    """Constructor of the lazy forms: all but ``num_features``, which the first input gives."""

    def __init__(
        self,
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
        # torch.nn's lazy class has no num_features.
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.act = act
        self.average = average


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d, BatchNorm1d):
    """:class:`BatchNorm1d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm1d
    _check_input_dim = BatchNorm1d._check_input_dim


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d, BatchNorm2d):
    """:class:`BatchNorm2d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm2d
    _check_input_dim = BatchNorm2d._check_input_dim


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d, BatchNorm3d):
    """:class:`BatchNorm3d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm3d
    _check_input_dim = BatchNorm3d._check_input_dim
