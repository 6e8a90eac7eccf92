"""Charts of published figures alone, where data of their own give them axes of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.charts import printed
from normkit.lab.claims.study.units import Unit
from normkit.lab.findings import Chart, Line

__all__ = ["Quoted"]


@dataclasses.dataclass(frozen=True)
class Quoted:
    """Published curves, in the unit that is printed, beside a chart of ours over the same x.

    Errors on ImageNet and on Fashion-MNIST on one axis would show their difference, and hide what
    each does over x.
    """

    key: str
    title: str
    x: str
    y: str
    unit: Unit
    lines: Sequence[Line]
    x_log: bool = False

    def __call__(self, evidence: Evidence) -> Chart | None:
        """Draw the chart; return None before there are runs to set it beside."""
        if not evidence.runs:
            return None
        words = "; ".join(
            f"{line.label} {printed(line.y[0], self.unit)}"
            + (f" to {printed(line.y[-1], self.unit)}" if len(line.y) > 1 else "")
            for line in self.lines
        )
        return Chart(
            key=self.key,
            title=self.title,
            x_label=self.x,
            y_label=self.unit.label(self.y),
            lines=tuple(self.lines),
            text=f"{self.title}: {words}. These are the source's figures, none of ours.",
            x_log=self.x_log,
            markers=True,
        )
