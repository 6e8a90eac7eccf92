"""Statistics of normalization layers: measured with standard errors, compared, replaced."""

from normkit.nn.stats_spec import StatsSpec, stats_spec
from normkit.statistics.average_buffers import average_buffers
from normkit.statistics.consistency import consistency
from normkit.statistics.contexts import batch_statistics, use_domain
from normkit.statistics.estimates.gaps import Gap
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.outputs.compare import OutputComparison
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results.consistency import Consistency
from normkit.statistics.results.recalibration import Recalibration
from normkit.statistics.results.shared_layers import SharedLayer
from normkit.statistics.results.shift import Shift

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
