"""Where a layer's moments come from: measured, with how sure they are, and repaired."""

from normkit.statistics.averaging import average_buffers
from normkit.statistics.consistency import consistency
from normkit.statistics.estimate import LayerStatistics
from normkit.statistics.gaps import Consistency, Gap, OutputGap
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.recalibration import Moved, Recalibration
from normkit.statistics.remembering import Memory, memory_of
from normkit.statistics.switches import batch_statistics, use_domain

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
