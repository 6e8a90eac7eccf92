"""Charts: curves of runs over anything that has an order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any, Literal

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.measures import Curve, Measure, over, steps
from normkit.lab.claims.study.units import Unit, decimal
from normkit.lab.findings import Chart, Line
from normkit.lab.runs import Run
from normkit.lab.spreads import deviation_interval
from normkit.lab.verdicts import interval

__all__ = [
    "Band",
    "Curves",
    "Series",
    "Summary",
    "along",
    "along_steps",
    "by_setting",
    "printed",
    "published",
    "summary",
]

Band = Literal["interval", "range", "geometric", "deviation", "none"]
"""The summary of several runs: the mean with its 95 % interval; the median, from the least to the
greatest, where spread itself is the subject; the geometric mean, of decimal logarithms; the
standard deviation; or the mean alone. Intervals here are over the seeds; that an effect would be
another with other test images is allowed for where it is judged (:class:`.endpoints.Endpoint`)."""

_BANDS: dict[Band, str] = {
    "interval": " The band is the 95 % interval of the mean over the seeds, for these images.",
    "range": " The line is the median of the seeds; the band goes from the least to the greatest.",
    "geometric": " The line is the geometric mean of the seeds; the band is its 95 % interval over "
    "them, for these images.",
    "deviation": " The line is the standard deviation of the seeds; the band is its 95 % interval "
    "over them, for these images.",
    "none": "",
}
_MIDDLES: dict[Band, str] = {
    "interval": "mean",
    "range": "median",
    "geometric": "geometric mean",
    "deviation": "deviation",
    "none": "mean",
}
Summary = tuple[float | None, float | None, float | None]


def summary(
    values: Iterable[float | None], band: Band, unit: Unit, *, log: bool = False
) -> Summary:
    """Return middle, low and high of what is known, as printed; no interval of a single value.

    An interval ends where the unit does. For a logarithmic axis (``log``), whose values are above
    zero, it is Student's of the mean's logarithm, and so is that of a deviation.

    >>> from normkit.lab.claims.study.units import PERCENT
    >>> summary([0.9, 0.98, 0.99], "interval", PERCENT)[2]
    100.0
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None, None, None
    if band == "deviation":
        result: Summary = (stdev(known) if len(known) > 1 else None, None, None)
        if len(known) > 2 and result[0]:
            result = deviation_interval(known)
    elif band == "range":
        result = (median(known), min(known), max(known))
    elif band == "none" or len(known) < 2:
        result = (fmean(known), None, None)
    else:
        result = middle, low, high = interval(known)
        if band == "geometric":
            result = (10**middle, 10**low, 10**high)
        elif log and middle > 0:
            ratio = math.exp((high - low) / 2 / middle)
            result = (middle, middle / ratio, middle * ratio)
        else:
            result = (middle, unit.within(low), unit.within(high))
    printed, least, most = (None if end is None else unit.scale * end for end in result)
    return printed, least, most


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve of a chart: which runs, and what is read off each.

    ``label`` is the arm's name where it is empty. Curves of one ``colour`` have one colour
    throughout a page; it is the label where it is empty.
    """

    arm: str
    curve: Curve
    label: str = ""
    colour: str = ""
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Curves over an ``x`` that has an order: the ``series``, which may depend on the evidence;
    without them one curve ``of`` each arm.

    Points of the runs of one series are gathered by their x. ``extra`` lines, published or
    theory, are in the unit that is printed; ``more`` is said after the text that is derived.
    At an x where ``failed`` holds for half of the runs there, or more, stands a cross. The text
    says where each curve begins and ends, or with ``peaks`` where it is highest.
    """

    key: str
    title: str
    x: str
    y: str
    unit: Unit
    of: Curve | None = None
    series: Sequence[Series] | Callable[[Evidence], Sequence[Series]] = ()
    band: Band = "interval"
    extra: Sequence[Line] = ()
    more: str = ""
    failed: Callable[[Run], bool] | None = None
    x_log: bool = False
    y_log: bool = False
    markers: bool = True
    peaks: bool = False

    def __call__(self, evidence: Evidence) -> Chart | None:
        """Draw the chart, or return None where nothing was measured."""
        drawn = [line for each in self._series(evidence) if (line := self._line(evidence, each))]
        if not drawn:
            return None
        says = self._peak if self.peaks else self._ends
        words = "; ".join(f"{line.label} {says(line)}" for line in drawn)
        return Chart(
            key=self.key,
            title=self.title,
            x_label=self.x,
            y_label=self.unit.label(self.y),
            lines=(*drawn, *self.extra),
            text=f"{self.title}: {words}.{_BANDS[self.band]}"
            + (f" {self.more}" if self.more else ""),
            x_log=self.x_log,
            y_log=self.y_log,
            markers=self.markers,
        )

    def _series(self, evidence: Evidence) -> Sequence[Series]:
        chosen = self.series(evidence) if callable(self.series) else self.series
        if chosen or self.of is None:
            return chosen
        return [Series(arm, self.of) for arm in evidence.arms]

    def _line(self, evidence: Evidence, series: Series) -> Line | None:
        columns: dict[float, list[float | None]] = {}
        failures: dict[float, list[bool]] = {}
        runs = evidence.of(series.arm, **series.where)
        count = 0
        for run in runs:
            points = series.curve(run)
            count += any(value is not None for _, value in points)
            for x, value in points:
                columns.setdefault(x, []).append(value)
                if self.failed is not None:
                    failures.setdefault(x, []).append(self.failed(run))
        places = tuple(sorted(columns))
        spans = [summary(columns[x], self.band, self.unit, log=self.y_log) for x in places]
        if all(middle is None for middle, _, _ in spans):
            return None
        y, low, high = zip(*spans, strict=True)
        label = series.label or series.arm
        seeds = len({run.config.seed for run in runs})
        return Line(
            label, places, y, low, high,
            arm=series.colour or label,
            failed=tuple(x for x, failed in failures.items() if 2 * sum(failed) >= len(failed)),
            note=f"{_MIDDLES[self.band]} of {min(count, seeds)}",
        )  # fmt: skip

    def _peak(self, line: Line) -> str:
        value, x = max(
            (value, x) for x, value in zip(line.x, line.y, strict=True) if value is not None
        )
        return f"highest at {x:.2g}, {printed(value, self.unit)}"

    def _ends(self, line: Line) -> str:
        first, last = line.y[0], line.y[-1]
        if len(line.y) == 1:
            return printed(first, self.unit)
        return f"from {printed(first, self.unit)} to {printed(last, self.unit)}"


def printed(value: float | None, unit: Unit) -> str:
    """Return a value that is in its printed unit already."""
    if value is None:
        return "unknown"
    places = unit.digits - 1
    if 0 < abs(value) < 1e-4:
        return f"nearly 0 {unit.name}".rstrip()
    if value and abs(value) < 10**-places:
        return f"{value:.2g} {unit.name}".rstrip()
    return f"{decimal(value, places)} {unit.name}".rstrip()


def along(measure: Measure, title: str, y: str, key: str = "", **options: Any) -> Curves:
    """Draw a measure after each epoch, a curve for each arm."""
    return Curves(key or measure.name, title, "epoch", y, measure.unit, measure.curve, **options)


def along_steps(metric: str, title: str, y: str, unit: Unit, **options: Any) -> Curves:
    """Draw a metric along the steps of training, a curve for each arm."""
    return Curves(
        options.pop("key", metric), title, "step", y, unit, steps(metric), markers=False, **options
    )


def by_setting(
    setting: Callable[[Run], float], measure: Measure, title: str, x: str, y: str, **options: Any
) -> Curves:
    """Draw a measure over a setting that the runs of one arm differ in, a curve for each arm."""
    return Curves(
        options.pop("key", x), title, x, y, measure.unit, over(setting, measure), **options
    )


def published(
    label: str, values: Mapping[Any, float] | Sequence[float], *, colour: str = "", note: str = ""
) -> Line:
    """Draw a source's values, by x or after the epochs from the first, in the printed unit.

    >>> published("with BN", (88.59, 89.76)).x
    (1.0, 2.0)
    """
    points = values.items() if isinstance(values, Mapping) else enumerate(values, 1)
    x, y = zip(*sorted(points), strict=True)
    return Line(
        label, tuple(map(float, x)), y,
        role="published", arm=colour or label, note=note,
    )  # fmt: skip
