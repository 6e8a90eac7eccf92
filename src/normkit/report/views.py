"""Findings as the page's templates want them: each with all that is printed or drawn beside it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from normkit.lab.findings import Chart, Comparison, Finding, PartWord
from normkit.report import charts, intervals, payload, text
from normkit.report.thumbnails import Thumbnail, thumbnail

__all__ = ["ChartView", "ClaimView", "Part", "claims", "parts"]


@dataclasses.dataclass(frozen=True)
class ChartView:
    """A chart, and what the template needs beside it."""

    id: str
    chart: Chart
    keys: list[charts.Key]
    numbers: charts.Numbers | None
    block: Markup

    @property
    def banded(self) -> bool:
        """True if a curve of the chart has a band."""
        return any(line.low and line.high for line in self.chart.lines)

    @property
    def rows(self) -> int:
        """The number of rows of a dot plot; 0 for a chart over an ordered x."""
        return len(self.chart.rows) if self.chart.kind == "dots" else 0

    @property
    def legend(self) -> bool:
        """True if curves need a legend: rows may be their names, or the axis says what one is."""
        if len(self.keys) == 1 and self.keys[0].label == self.chart.y_label:
            return False
        rows = set(map(text.tidy, self.chart.rows))
        return not self.rows or {key.label for key in self.keys} != rows

    @property
    def upright(self) -> tuple[str, bool]:
        """The label of the vertical axis, and True if it is logarithmic."""
        chart = self.chart
        return (chart.x_label, False) if self.rows else (chart.y_label, chart.y_log)

    @property
    def level(self) -> tuple[str, bool]:
        """The label of the horizontal axis, and True if it is logarithmic."""
        chart = self.chart
        return (chart.y_label, chart.y_log) if self.rows else (chart.x_label, chart.x_log)


@dataclasses.dataclass(frozen=True)
class Part:
    """An effect, with its picture."""

    comparison: Comparison
    shown: intervals.Interval


@dataclasses.dataclass(frozen=True)
class ClaimView:
    """A finding, and what the template needs beside it."""

    id: str
    finding: Finding
    charts: list[ChartView]
    parts: list[Part]
    information: list[Part]
    download: payload.Download
    small: Thumbnail | None

    @property
    def progress(self) -> str:
        """Number of planned runs that are done, until all are."""
        finding = self.finding
        if finding.complete:
            return ""
        return f"{finding.runs} of {len(finding.records)} runs done"

    @property
    def share(self) -> str:
        """Number of confirmed parts, where that says more than the claim's word."""
        finding = self.finding
        if self.progress or finding.parts < 2 or finding.word not in ("confirmed", "partly"):
            return ""
        if finding.confirmed == finding.parts:
            return "both parts" if finding.parts == 2 else f"all {finding.parts} parts"
        return f"{finding.confirmed} of {finding.parts} parts confirmed"

    @property
    def marks(self) -> list[tuple[PartWord, str]]:
        """The word and the question of each part, also of those that have no runs yet."""
        marks = [(part.comparison.word, part.comparison.question) for part in self.parts]
        unmeasured: tuple[PartWord, str] = ("open", "not measured yet")
        return marks + [unmeasured] * (max(self.finding.parts, 1) - len(marks))


def claims(findings: Sequence[Finding]) -> list[ClaimView]:
    """All claims of a page, each under a name of its own, its arms in the page's colours."""
    colours = charts.palette(chart for finding in findings for chart in finding.charts)
    names = _unique([text.slug(finding.key) for finding in findings])
    views = []
    for name, finding, download in zip(
        names, findings, payload.downloads(findings, names), strict=True
    ):
        pictures = [
            ChartView(
                id=f"{name}-chart-{index}",
                chart=chart,
                keys=charts.keys(chart, colours),
                numbers=charts.numbers(chart),
                block=payload.embed(charts.spec(chart, colours), compress=False),
            )
            for index, chart in enumerate(finding.charts, 1)
        ]
        shown = parts(finding.comparisons)
        views.append(
            ClaimView(
                id=name,
                finding=finding,
                charts=pictures,
                parts=[part for part in shown if part.comparison.decides],
                information=[part for part in shown if not part.comparison.decides],
                download=download,
                small=next(filter(None, (thumbnail(c, colours) for c in finding.charts)), None),
            )
        )
    return views


def parts(comparisons: Sequence[Comparison]) -> list[Part]:
    """Draw each effect."""
    return [Part(each, intervals.interval(each)) for each in comparisons]


def _unique(names: list[str]) -> list[str]:
    """Make names unique by a number, ignoring case: they become file names too."""
    # The page's own identifiers come first.
    uses: Counter[str] = Counter(
        ("claims", "filters", "main", "matches", "nothing", "plotly", "rule", "search",
         "surprises", "theme", "title", "top", "verdicts", "wall")
    )  # fmt: skip
    unique = []
    for name in names:
        uses[name.lower()] += 1
        count = uses[name.lower()]
        unique.append(name if count == 1 else f"{name}--{count}")
    return unique
