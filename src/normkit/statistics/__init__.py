"""Where a layer's moments come from: measured, with how sure they are, and repaired."""

from normkit.statistics.estimate import LayerStatistics
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.recalibration import Moved, Recalibration
from normkit.statistics.remembering import Memory, memory_of

__all__ = [
    "LayerStatistics",
    "Memory",
    "Moved",
    "Recalibration",
    "memory_of",
    "recalibrate",
]
