"""What :func:`normkit.recalibrate` did: statistics, how far they moved, and the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, StatisticsError, explain
from normkit.handle import SHOWN, Left, kind, place_name
from normkit.statistics.estimate import LayerStatistics, distance, relative_error
from normkit.statistics.stats_layers import Place

__all__ = [
    "Moved",
    "Recalibration",
    "Told",
    "deviations",
    "factor",
    "lines",
    "named",
    "percent",
    "plain",
]


class Told(NamedTuple):
    """What it took."""

    samples: int
    batches: int
    passes: int
    seconds: float


class Moved(NamedTuple):
    """How far a layer's remembered moments were from what they are now.

    Attributes:
        mean: root mean square over channels of the step of the mean, in deviations.
        variance: typical factor (at least 1) by which the variance changed, up or down: the
            exponential of the root mean square over channels of the logarithm of the ratio.
        error: relative standard error of what is there now, see ``relative_error``.

        ``mean`` and ``variance`` are NaN where the old ones were not finite.
    """

    mean: float
    variance: float
    error: float


class Recalibration:
    """A model whose statistics were replaced. Made by :func:`normkit.recalibrate`.

    Attributes:
        layers: each layer's :class:`LayerStatistics`, by name; those of a layer with several
            domains as ``name[k]``.
        moved: how far each of them moved, likewise.
        left: layers that were not touched, and why.
        samples, batches, passes, seconds: what it took; of all processes together.

    As a context manager it undoes at the end::

        with nk.recalibrate(model, batches):
            evaluate(model)
    """

    def __init__(
        self,
        places: Sequence[Place],
        found: Mapping[str, LayerStatistics],
        left: Sequence[Left],
        units: Mapping[str, int],
        told: Told,
    ) -> None:
        self.layers = dict(found)
        self.left = tuple(left)
        self.samples, self.batches, self.passes, self.seconds = told
        self._units = dict(units)
        self._kinds = {name: type(place.layer) for place in places for name, _ in place.banks}
        self.moved = {
            name: Moved(
                *distance(*place.remembered(row), found[name], place.eps),
                relative_error(found[name], place.eps),
            )
            for place in places
            for name, row in place.banks
            if name in found
        }
        self._before: list[tuple[nn.Module, str, Tensor]] = []
        self._write(places)

    def _write(self, places: Sequence[Place]) -> None:
        try:
            for place in places:
                rows = [(name, row) for name, row in place.banks if name in self.layers]
                if not rows:
                    continue
                pair = place.tensors
                for key, own in zip((place.memory.mean, place.memory.var), pair, strict=True):
                    self._before.append((place.layer, key, own.detach().clone()))
                for name, row in rows:
                    one = self.layers[name]
                    with torch.no_grad():
                        for own, value in zip(pair, (one.mean, one.variance), strict=True):
                            (own if row is None else own[row]).copy_(value)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put back the very bits that were remembered before. A second call does nothing."""
        before, self._before = self._before, []
        with torch.no_grad():
            # By name: the model may have been moved to another device meanwhile. And backwards:
            # layers may share a tensor.
            for layer, key, value in reversed(before):
                getattr(layer, key).copy_(value)

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
    def error(self) -> float:
        """The worst layer's relative standard error; 0.01 is 1 %. NaN from a single batch."""
        errors = [moved.error for moved in self.moved.values()]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def interval(self, name: str, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Intervals for a layer's mean and variance, each (2, C): lower and upper bounds.

        Student's t on as many degrees of freedom as there were units, less one; for the variance
        on a logarithmic scale. Needs scipy, which ``normkit[lab]`` brings.

        Raises:
            StatisticsError: ``name`` was not recalibrated, or was seen in one batch only.
            OptionError: ``confidence`` is no share between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise OptionError(
                explain(
                    "confidence is a share above 0 and below 1",
                    f"confidence={confidence!r}",
                    "use 0.95, for 95 %",
                )
            )
        if name not in self.layers or self._units[name] < 2:
            raise StatisticsError(
                explain(
                    "an interval needs a layer that was seen in at least two batches",
                    repr(name),
                    f"choose one of {', '.join(self.layers)}, or pass smaller batches",
                )
            )
        from scipy import stats

        one = self.layers[name]
        t = float(stats.t.ppf(0.5 + confidence / 2, self._units[name] - 1))
        sides = torch.tensor([[-t], [t]], dtype=torch.float64)
        mean = one.mean + sides * one.mean_standard_error
        # A variance is above zero and errs further upwards: the interval is that of its logarithm.
        share = one.variance_standard_error / one.variance
        variance = one.variance * (sides * share.nan_to_num(0.0)).exp()
        return mean, variance

    def summary(self) -> dict[str, Any]:
        """What is printed, as plain values for another program."""
        return {
            "samples": self.samples,
            "batches": self.batches,
            "passes": self.passes,
            "seconds": round(self.seconds, 3),
            "error": _finite(self.error),
            "layers": [
                {
                    "layer": name,
                    "values": self.layers[name].count,
                    **{key: _finite(value) for key, value in moved._asdict().items()},
                }
                for name, moved in self.moved.items()
            ],
            "left": [{"layer": row.name, "why": row.why} for row in self.left],
        }

    def __repr__(self) -> str:
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        passes = "" if self.passes == 1 else f" in {self.passes} passes"
        said = (
            f"recalibrate: {layers} from {self.samples:,} samples, {self.batches:,} batches"
            f"{passes}, {self.seconds:.1f} s; known to {percent(self.error)}"
        )
        ranked = sorted(self.moved.items(), key=lambda item: -_far(item[1]))
        rows = [
            (
                named(name, self._kinds[name]),
                deviations(moved.mean),
                factor(moved.variance),
                percent(moved.error),
            )
            for name, moved in ranked
        ]
        head = ("layer", "mean moved", "variance moved", "standard error")
        return "\n".join([said, *lines(head, rows, self.left, ", which moved less")])


def _far(moved: Moved) -> float:
    """For the order of the table: how far, both moments together."""
    far = moved.mean + math.log(moved.variance) if moved.variance > 0 else math.nan
    return math.inf if math.isnan(far) else far


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[Left], rest: str = ""
) -> list[str]:
    """A table, its first column to the left; then what was left, and why.

    ``rest`` says in words what the rows are that find no room.
    """
    shown = [head, *rows[:SHOWN]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    table = [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(w)}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in shown
    ]
    if len(rows) > SHOWN:
        table.append(f"  … and {len(rows) - SHOWN} more{rest}")
    return table + [f"  {named(row.name, row.type)} left: {row.why}" for row in left]


def named(name: str, cls: type) -> str:
    """A layer by its place and its class."""
    return f"{place_name(name)} ({kind(cls)})"


def deviations(value: float) -> str:
    """A distance of means."""
    return "not finite" if not math.isfinite(value) else f"{value:.2f} σ"


def factor(value: float) -> str:
    """A ratio of variances, up or down."""
    return "not finite" if not math.isfinite(value) else f"×÷ {value:.2f}"


def percent(share: float) -> str:
    """A share; a dash where nobody can know it."""
    return "–" if math.isnan(share) else f"{100 * share:.2g} %"


def plain(value: float) -> str:
    """A number; a dash where nobody can know it."""
    return "–" if math.isnan(value) else f"{value:.1f}"
