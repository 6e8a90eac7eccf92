"""Charts: quantities as dots with whiskers, for what has no order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.charts import Summary, printed, published, summary
from normkit.lab.claims.study.quantities import Quantity
from normkit.lab.findings import Chart, Line

__all__ = ["Dots"]


@dataclasses.dataclass(frozen=True)
class Dots:
    """Quantities as dots with whiskers: ``lines`` has for each label the quantity of each row.

    ``extra`` lines have for each label the printed value of each row.
    """

    key: str
    title: str
    rows: str
    y: str
    lines: Mapping[str, Mapping[str, Quantity]]
    extra: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    difference: bool = False
    more: str = ""

    def __call__(self, evidence: Evidence) -> Chart | None:
        """Draw the chart, or return None where nothing was measured."""
        spans = {
            label: {
                row: span
                for row, quantity in of.items()
                if (span := _span(quantity, evidence))[0] is not None
            }
            for label, of in self.lines.items()
        }
        names = [
            row
            for row in dict.fromkeys(row for of in self.lines.values() for row in of)
            if any(row in span for span in spans.values())
        ]
        if not names:
            return None
        unit = next(quantity.unit for of in self.lines.values() for quantity in of.values())
        if self.difference:
            unit = unit.of_difference
        lines = [
            _dots(label, {names.index(row): span for row, span in of.items()})
            for label, of in spans.items()
            if of
        ]
        words = "; ".join(
            ("" if names[int(line.x[0])].startswith(line.label) else f"{line.label}: ")
            + ", ".join(
                f"{names[int(x)]} {printed(y, unit)}" for x, y in zip(line.x, line.y, strict=True)
            )
            for line in lines
        )
        beside = [
            published(label, at)
            for label, of in self.extra.items()
            if (at := {names.index(row): value for row, value in of.items() if row in names})
        ]
        apart = "paired differences" if self.difference else "mean"
        return Chart(
            key=self.key,
            title=self.title,
            x_label=self.rows,
            y_label=unit.label(self.y),
            lines=(*lines, *beside),
            text=f"{self.title}: {words}. Whiskers are 95 % intervals of the {apart} "
            "over the seeds, for these images." + (f" {self.more}" if self.more else ""),
            kind="dots",
            rows=tuple(names),
        )


def _span(quantity: Quantity, evidence: Evidence) -> Summary:
    return summary(quantity.by_seed(evidence).values(), "interval", quantity.unit)


def _dots(label: str, spans: Mapping[int, Summary]) -> Line:
    places = sorted(spans)
    y, low, high = zip(*(spans[place] for place in places), strict=True)
    return Line(label, tuple(map(float, places)), y, low, high, arm=label)
