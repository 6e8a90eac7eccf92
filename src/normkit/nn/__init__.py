"""The layers: ``torch.nn``'s namesakes, each a drop-in, and those it lacks.

A layer imported here "as" itself is public: ``__all__`` and :mod:`normkit` take it from here.
"""

from normkit.nn.batchnorm import BatchNorm1d as BatchNorm1d
from normkit.nn.batchnorm import BatchNorm2d as BatchNorm2d
from normkit.nn.batchnorm import BatchNorm3d as BatchNorm3d
from normkit.nn.batchrenorm import BatchRenorm1d as BatchRenorm1d
from normkit.nn.batchrenorm import BatchRenorm2d as BatchRenorm2d
from normkit.nn.batchrenorm import Ramp as Ramp
from normkit.nn.domainbatchnorm import DomainBatchNorm1d as DomainBatchNorm1d
from normkit.nn.domainbatchnorm import DomainBatchNorm2d as DomainBatchNorm2d
from normkit.nn.frozen import FrozenBatchNorm2d as FrozenBatchNorm2d
from normkit.nn.ghostbatchnorm import GhostBatchNorm1d as GhostBatchNorm1d
from normkit.nn.ghostbatchnorm import GhostBatchNorm2d as GhostBatchNorm2d
from normkit.nn.groupnorm import GroupNorm as GroupNorm
from normkit.nn.halfinstancenorm import HalfInstanceNorm2d as HalfInstanceNorm2d
from normkit.nn.instancenorm import InstanceNorm1d as InstanceNorm1d
from normkit.nn.instancenorm import InstanceNorm2d as InstanceNorm2d
from normkit.nn.instancenorm import InstanceNorm3d as InstanceNorm3d
from normkit.nn.instancenorm import LazyInstanceNorm1d as LazyInstanceNorm1d
from normkit.nn.instancenorm import LazyInstanceNorm2d as LazyInstanceNorm2d
from normkit.nn.instancenorm import LazyInstanceNorm3d as LazyInstanceNorm3d
from normkit.nn.layernorm import LayerNorm as LayerNorm
from normkit.nn.layernorm import LayerNorm2d as LayerNorm2d
from normkit.nn.layernorm import RMSNorm as RMSNorm
from normkit.nn.lazybatchnorm import LazyBatchNorm1d as LazyBatchNorm1d
from normkit.nn.lazybatchnorm import LazyBatchNorm2d as LazyBatchNorm2d
from normkit.nn.lazybatchnorm import LazyBatchNorm3d as LazyBatchNorm3d
from normkit.nn.scale import Scale as Scale
from normkit.nn.syncbatchnorm import SyncBatchNorm as SyncBatchNorm

__all__ = sorted(name for name, value in globals().items() if isinstance(value, type))
