"""Where a layer's moments come from: measured, with how sure they are, and repaired."""

from normkit.statistics.agreement import Consistency, Gap, OutputGap
from normkit.statistics.consistency import consistency
from normkit.statistics.contexts import batch_statistics, use_domain
from normkit.statistics.distributed import average_buffers
from normkit.statistics.estimate import LayerStatistics
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results import Moved, Recalibration
from normkit.statistics.stats_layers import Memory, memory_of

__all__ = [
    "Consistency",
    "Gap",
    "LayerStatistics",
    "Memory",
    "Moved",
    "OutputGap",
    "Recalibration",
    "average_buffers",
    "batch_statistics",
    "consistency",
    "memory_of",
    "recalibrate",
    "use_domain",
]
