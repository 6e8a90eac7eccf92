"""Layers: ``torch.nn``'s namesakes, each a drop-in, and those it lacks."""

from normkit.nn.adaptivegroupnorm import AdaptiveGroupNorm
from normkit.nn.adaptivelayernorm import AdaptiveLayerNorm
from normkit.nn.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
)
from normkit.nn.batchrenorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, Ramp
from normkit.nn.domainbatchnorm import DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d
from normkit.nn.filterresponsenorm import (
    FilterResponseNorm1d,
    FilterResponseNorm2d,
    FilterResponseNorm3d,
)
from normkit.nn.frozen import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from normkit.nn.ghostbatchnorm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.halfinstancenorm import HalfInstanceNorm2d
from normkit.nn.instancenorm import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from normkit.nn.layernorm import LayerNorm, LayerNorm2d, RMSNorm
from normkit.nn.lazybatchnorm import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from normkit.nn.maskedbatchnorm import MaskedBatchNorm1d, MaskedBatchNorm2d
from normkit.nn.maskedgroupnorm import MaskedGroupNorm
from normkit.nn.maskedinstancenorm import MaskedInstanceNorm1d, MaskedInstanceNorm2d
from normkit.nn.scale import Scale
from normkit.nn.switchablenorm import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d
from normkit.nn.syncbatchnorm import SyncBatchNorm
from normkit.nn.weightstandardization import (
    WeightStandardizedConv1d,
    WeightStandardizedConv2d,
    WeightStandardizedConv3d,
)
from normkit.nn.zerocenteredrmsnorm import ZeroCenteredRMSNorm

__all__ = [
    "AdaptiveGroupNorm",
    "AdaptiveLayerNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "FilterResponseNorm1d",
    "FilterResponseNorm2d",
    "FilterResponseNorm3d",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
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
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedGroupNorm",
    "MaskedInstanceNorm1d",
    "MaskedInstanceNorm2d",
    "RMSNorm",
    "Ramp",
    "Scale",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "SyncBatchNorm",
    "WeightStandardizedConv1d",
    "WeightStandardizedConv2d",
    "WeightStandardizedConv3d",
    "ZeroCenteredRMSNorm",
]
