"""Normalization for PyTorch: drop-in layers, honest statistics, and a lab that tests the claims.

>>> import torch
>>> import normkit as nk
>>> layer = nk.BatchNorm2d(16, act="relu")       # torch.nn.BatchNorm2d then ReLU, in one layer
>>> layer(torch.randn(8, 16, 32, 32)).shape
torch.Size([8, 16, 32, 32])
"""

from normkit import errors
from normkit.errors import (
    DataError,
    NonFiniteError,
    NormkitError,
    OptionError,
    ShapeError,
    StatisticsError,
    StoreError,
    TypeMismatchError,
)
from normkit.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    FrozenBatchNorm2d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GroupNorm,
    HalfInstanceNorm2d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    Ramp,
    RMSNorm,
    Scale,
    SyncBatchNorm,
)
from normkit.statistics import (
    average_buffers,
    batch_statistics,
    consistency,
    recalibrate,
    use_domain,
)
from normkit.surgery import accelerate, convert, freeze, scale_momentum, unfreeze

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "DataError",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "FrozenBatchNorm2d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GroupNorm",
    "HalfInstanceNorm2d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "NonFiniteError",
    "NormkitError",
    "OptionError",
    "RMSNorm",
    "Ramp",
    "Scale",
    "ShapeError",
    "StatisticsError",
    "StoreError",
    "SyncBatchNorm",
    "TypeMismatchError",
    "accelerate",
    "average_buffers",
    "batch_statistics",
    "consistency",
    "convert",
    "errors",
    "freeze",
    "recalibrate",
    "scale_momentum",
    "unfreeze",
    "use_domain",
]
