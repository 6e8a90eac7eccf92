"""Result of :func:`normkit.recalibrate`: statistics, their changes, and undo; and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from normkit.errors import OptionError, StatisticsError, message
from normkit.handle import Skipped
from normkit.statistics.estimates.intervals import confidence_intervals
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.layers.replace import Replacement
from normkit.statistics.printing.tables import (
    format_deviations,
    format_factor,
    format_percent,
    format_size,
    format_table,
    layer_label,
)
from normkit.statistics.results.shared_layers import SharedLayer
from normkit.statistics.results.shift import Shift, shift_to

__all__ = ["Cost", "Recalibration"]

FEW_UNITS = 8
"""With fewer batches than this a standard error is printed with its own uncertainty."""


class Cost(NamedTuple):
    """Cost of the recalibration."""

    samples: int
    batches: int
    passes: int
    seconds: float
    error_passes: int = 0


class Recalibration:
    """Result of :func:`normkit.recalibrate`, which replaced a model's running statistics.

    Attributes:
        layers: each layer's :class:`LayerStatistics`, by name; those of a layer with several
            domains as ``name[k]``.
        shifts: the :class:`Shift` of each of them, likewise.
        skipped: layers that were skipped, and why.
        shared: layers that one pass calls several times, on inputs that their one mean and
            variance do not fit; a :class:`SharedLayer` each.
        per_sample: names of those whose statistics are averages over samples, as instance
            normalization's are.
        samples, batches, passes, seconds: its cost; of all processes together.
        error_passes: further passes that only the standard errors took.
        avoided_bias: bias that a single pass over these batches would have had, where it was too
            large and the layers were measured layer by layer; else 0.

    As a context manager it restores the former statistics on exit::

        with nk.recalibrate(model, batches):
            evaluate(model)
    """

    def __init__(
        self,
        norm_layers: Sequence[NormLayer],
        statistics: Mapping[str, LayerStatistics],
        skipped: Sequence[Skipped],
        units: Mapping[str, int],
        cost: Cost,
        shared: Sequence[SharedLayer] = (),
        avoided_bias: float = 0.0,
    ) -> None:
        self.layers = dict(statistics)
        self.skipped = tuple(skipped)
        self.shared = tuple(shared)
        self.samples, self.batches, self.passes, self.seconds, self.error_passes = cost
        self.avoided_bias = avoided_bias
        self._units = dict(units)
        by_bank = layers_by_bank(norm_layers)
        self._classes = {name: type(one.layer) for name, one in by_bank.items()}
        self.per_sample = frozenset(name for name, one in by_bank.items() if one.per_sample)
        self.shifts = {
            name: shift_to(statistics[name], one.stats(row), one.eps)
            for one in norm_layers
            for name, row in one.banks
            if name in statistics
        }
        self._replacement = Replacement(norm_layers, self.layers)

    def undo(self) -> None:
        """Restore the former statistics bit for bit. A second call does nothing."""
        self._replacement.undo()

    def __enter__(self) -> Recalibration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    @property
    def moved(self) -> dict[str, Shift]:
        """Former name of ``shifts``."""
        return self.shifts

    @property
    def left(self) -> tuple[Skipped, ...]:
        """Former name of ``skipped``."""
        return self.skipped

    @property
    def error(self) -> float:
        """Relative standard error of the worst layer; 0.01 is 1 %. NaN from a single batch."""
        errors = [shift.error for shift in self.shifts.values()]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    @property
    def bias(self) -> float:
        """Estimated bias of the worst layer, a share: what small batches may cost."""
        return max(shift.bias for shift in self.shifts.values())

    def interval(self, name: str, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Confidence intervals of a layer's mean and variance, each (2, C): lower and upper.

        Student's t with one degree of freedom less than there were units; for the variance on a
        logarithmic scale. Wider on both sides by the layer's ``bias``, which may go either way:
        where it is not 0 the interval is approximate, as the bias is estimated and a mean over
        channels. Needs scipy, which ``normkit[lab]`` installs.

        Raises:
            StatisticsError: ``name`` was not recalibrated, or was seen in one batch only.
            OptionError: ``confidence`` is not between 0 and 1.
        """
        if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
            raise OptionError(
                message(
                    "confidence between 0 and 1",
                    f"confidence={confidence!r}",
                    "use 0.95, for 95 %",
                )
            )
        if name not in self.layers or bool(self.layers[name].mean_standard_error.isnan().any()):
            raise StatisticsError(
                message(
                    "a layer that was seen in at least two batches",
                    repr(name),
                    f"choose one of {', '.join(self.layers)}, or pass more and smaller batches",
                )
            )
        return confidence_intervals(self.layers[name], self._units[name], confidence)

    def summary(self) -> dict[str, Any]:
        """Return the printed table as plain values, for another program."""
        return {
            "samples": self.samples,
            "batches": self.batches,
            "passes": self.passes,
            "error_passes": self.error_passes,
            "seconds": round(self.seconds, 3),
            "error": _finite(self.error),
            "bias": self.bias,
            "avoided_bias": self.avoided_bias,
            "layers": [
                {
                    "layer": name,
                    "values": self.layers[name].count,
                    **{key: _finite(value) for key, value in shift._asdict().items()},
                }
                for name, shift in self.shifts.items()
            ],
            "shared": [
                {
                    "layer": one.name,
                    "calls": [
                        {"call": n, **{key: _finite(value) for key, value in gap._asdict().items()}}
                        for n, gap in one.calls.items()
                    ],
                }
                for one in self.shared
            ],
            "left": [{"layer": row.name, "why": row.why} for row in self.skipped],
        }

    def _certainty(self) -> str:
        """State standard error and bias, neither without the other."""
        units = min(self._units[name] for name in self.layers)
        if math.isnan(self.error):
            certainty = f"standard error unknown from {_plural(units)}"
        else:
            certainty = f"standard error at most {format_percent(self.error)}"
            if units < FEW_UNITS:
                # Of a standard deviation from U values.
                spread = format_percent(1 / math.sqrt(2 * (units - 1)))
                certainty += f" (from {units} batches, so itself known to ±{spread})"
        if self.bias:
            certainty += f", bias about {format_percent(self.bias)}"
        return certainty

    def __repr__(self) -> str:
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        passes = "" if self.passes == 1 else f" in {self.passes} passes"
        passes += f" and {self.error_passes} for the errors" if self.error_passes else ""
        batches = _plural(self.batches)
        head = (
            f"recalibrate: {layers} from {self.samples:,} samples, {batches}{passes}, "
            f"{self.seconds:.1f} s; {self._certainty()}"
        )
        if self.avoided_bias:
            head += (
                "\n  layer by layer, as one pass over batches of "
                f"{format_size(self.samples / self.batches)} would be off by about "
                f"{format_percent(self.avoided_bias)}"
            )
        rows = [
            (
                layer_label(name, self._classes[name]),
                format_deviations(shift.mean),
                format_factor(shift.variance),
                format_percent(shift.error),
                *([format_percent(shift.bias)] if self.bias else []),
            )
            for name, shift in sorted(self.shifts.items(), key=lambda item: -item[1].size)
        ]
        columns = ["layer", "mean shift", "variance shift", "standard error"]
        columns += ["bias about"] if self.bias else []
        table = format_table(columns, rows, self.skipped, " with smaller shifts")
        return "\n".join([head, *table, *(f"  {one}" for one in self.shared)])


def _plural(number: int) -> str:
    return "1 batch" if number == 1 else f"{number:,} batches"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
