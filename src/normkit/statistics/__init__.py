"""Statistics of normalization layers: measured with standard errors, compared, replaced."""

from normkit.statistics.agreement import Consistency, OutputComparison
from normkit.statistics.calls import SharedLayer
from normkit.statistics.consistency import consistency
from normkit.statistics.contexts import batch_statistics, use_domain
from normkit.statistics.distributed import average_buffers
from normkit.statistics.estimate import LayerStatistics
from normkit.statistics.gaps import Gap
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results import Recalibration, Shift
from normkit.statistics.stats_layers import StatsSpec, stats_spec

__all__ = [
    "Consistency",
    "Gap",
    "LayerStatistics",
    "OutputComparison",
    "Recalibration",
    "SharedLayer",
    "Shift",
    "StatsSpec",
    "average_buffers",
    "batch_statistics",
    "consistency",
    "recalibrate",
    "stats_spec",
    "use_domain",
]
