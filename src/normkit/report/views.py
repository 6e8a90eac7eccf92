"""Findings as the page's templates want them: each with all that is printed or drawn beside it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from normkit.lab.findings import Chart, Comparison, Finding
from normkit.report import charts, intervals, payload, text

__all__ = ["ChartView", "ClaimView", "claims"]


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
        """True if curves need a legend: those of a dot plot whose rows are their names do not."""
        return not self.rows or {key.label for key in self.keys} != set(self.chart.rows)

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
class ClaimView:
    """A finding, and what the template needs beside it."""

    id: str
    finding: Finding
    charts: list[ChartView]
    # Each on its own scale for the overview, all on one scale for the claim's own table.
    overview: tuple[Comparison, intervals.Interval] | None
    comparisons: list[tuple[str, list[tuple[Comparison, intervals.Interval]]]]
    download: payload.Download

    @property
    def tested(self) -> int:
        """The number of deciding questions with a p-value."""
        return sum(one.decides and one.p is not None for one in self.finding.comparisons)

    @property
    def differs(self) -> tuple[str, str] | None:
        """The words where the verdict is not the source's, with a possible reason; else None."""
        word, why = self.finding.word, self.finding.differs
        if word == "open" and why:
            return "The source says yes, and these runs cannot tell.", f"Why it may be: {why}"
        if word not in ("partly", "refuted"):
            return None
        why = f"Why it may be: {why}" if why else "We have no explanation."
        partly = "Only part of the claim was confirmed."
        return partly if word == "partly" else "The source says otherwise.", why


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
        pick = _deciding(finding)
        views.append(
            ClaimView(
                id=name,
                finding=finding,
                charts=pictures,
                overview=(pick, intervals.interval(pick)) if pick else None,
                comparisons=_grouped(finding.comparisons),
                download=download,
            )
        )
    return views


def _deciding(finding: Finding) -> Comparison | None:
    """The first of the effects that decide; the first of all where none does."""
    decide = [one for one in finding.comparisons if one.decides] or list(finding.comparisons)
    return next(iter(decide), None)


def _grouped(
    comparisons: Sequence[Comparison],
) -> list[tuple[str, list[tuple[Comparison, intervals.Interval]]]]:
    """The effects that decide before those for information, under headings where both are."""
    shown = [
        (one, intervals.interval(one, intervals.reach(same_unit)))
        for one in comparisons
        for same_unit in [[c for c in comparisons if c.unit == one.unit]]
    ]
    groups = [
        ("These decide", [pair for pair in shown if pair[0].decides]),
        ("For information", [pair for pair in shown if not pair[0].decides]),
    ]
    if not groups[0][1]:  # nothing says what decides
        return [("", shown)]
    return [group for group in groups if group[1]]


def _unique(names: list[str]) -> list[str]:
    """Make names unique by a number, ignoring case: they become file names too."""
    # The page's own identifiers come first.
    uses: Counter[str] = Counter(
        ("main", "overview", "plotly", "rule", "theme", "title", "top", "verdicts")
    )
    unique = []
    for name in names:
        uses[name.lower()] += 1
        count = uses[name.lower()]
        unique.append(name if count == 1 else f"{name}--{count}")
    return unique
