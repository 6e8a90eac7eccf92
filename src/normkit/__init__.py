"""Normalization for PyTorch: drop-in layers, correct statistics, and a lab that tests claims.

>>> import torch
>>> import normkit as nk
>>> layer = nk.BatchNorm2d(16, act="relu")       # torch.nn.BatchNorm2d then ReLU, in one layer
>>> layer(torch.randn(8, 16, 32, 32)).shape
torch.Size([8, 16, 32, 32])
"""

from normkit import errors, nn
from normkit import integrations as _integrations  # noqa: F401  # makes their layers known
from normkit.adaptation import adapt, adapt_domains, tent
from normkit.allocator import keep_freed_memory
from normkit.doctor import diagnose
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
from normkit.nn import *  # noqa: F403  # layers are listed there, once
from normkit.statistics import (
    average_buffers,
    batch_statistics,
    consistency,
    recalibrate,
    use_domain,
)
from normkit.surgery import (
    Backend,
    accelerate,
    convert,
    deploy,
    fold,
    freeze,
    load_folded,
    merge,
    parameter_groups,
    save_memory,
    scale_momentum,
    unfreeze,
)

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "DataError",
    "NonFiniteError",
    "NormkitError",
    "OptionError",
    "ShapeError",
    "StatisticsError",
    "StoreError",
    "TypeMismatchError",
    "accelerate",
    "adapt",
    "adapt_domains",
    "average_buffers",
    "batch_statistics",
    "consistency",
    "convert",
    "deploy",
    "diagnose",
    "errors",
    "fold",
    "freeze",
    "keep_freed_memory",
    "load_folded",
    "merge",
    "parameter_groups",
    "recalibrate",
    "save_memory",
    "scale_momentum",
    "tent",
    "unfreeze",
    "use_domain",
]
__all__ += nn.__all__
__all__.sort()
