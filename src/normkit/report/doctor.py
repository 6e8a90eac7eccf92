"""Page of a diagnosis: findings as cards, and the pictures that explain them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import SEVERITIES, Finding, Gain
from normkit.doctor.rules import RULES
from normkit.handle import place_name
from normkit.lab.findings import Comparison
from normkit.report import charts, intervals, payload
from normkit.report.doctor_charts import diagnosis_charts
from normkit.report.shell import check_target, render_page, write_page
from normkit.report.views import ChartView

__all__ = ["Card", "render", "write"]


@dataclasses.dataclass(frozen=True)
class Section:
    """Part of a rule's explanation: its heading, and paragraphs, of which some are code."""

    heading: str
    paragraphs: tuple[tuple[str, bool], ...]


@dataclasses.dataclass(frozen=True)
class Card:
    """A finding, and what the template prints beside it."""

    id: str
    finding: Finding
    title: str
    places: tuple[str, ...]
    sections: tuple[Section, ...]
    gain: intervals.Interval | None


def write(diagnosis: Diagnosis, path: Path, *, about: Mapping[str, str]) -> Path:
    """Write the page of a diagnosis to ``path`` and return the path.

    One HTML file, which opens without a network; see :func:`normkit.report.write`.

    Args:
        about: what the page says about itself, such as the model and its checkpoint, by name.

    Raises:
        StoreError: the file cannot be written, or is something else than a page of normkit.
    """
    path = Path(path)
    check_target(path)
    return write_page(path, render(diagnosis, about=about))


def render(diagnosis: Diagnosis, *, about: Mapping[str, str]) -> str:
    """Return the page as text; :func:`write` puts it in its place.

    >>> from torch import nn
    >>> from normkit.doctor import diagnose
    >>> page = render(diagnose(nn.BatchNorm1d(2, momentum=0.99)), about={"model": "a <net>"})
    >>> "NK104" in page, "a &lt;net&gt;" in page
    (True, True)
    """
    pictures = diagnosis_charts(diagnosis)
    colours = charts.palette(pictures)
    gain = diagnosis.gain
    return render_page(
        "doctor.html.j2",
        sheets=("doctor.css",),
        diagnosis=diagnosis,
        cards=[_card(number, one) for number, one in enumerate(diagnosis.findings, 1)],
        counts=[
            (severity, sum(one.severity == severity for one in diagnosis.findings))
            for severity in SEVERITIES
        ],
        charts=[
            ChartView(
                id=chart.key,
                chart=chart,
                keys=charts.keys(chart, colours),
                numbers=charts.numbers(chart),
                block=payload.embed(charts.spec(chart, colours), compress=False),
            )
            for chart in pictures
        ],
        gain=None if gain is None else _interval(gain),
        before=None if gain is None else _score(gain.before, gain),
        after=None if gain is None else _score(gain.after, gain),
        about=dict(about),
    )


def _card(number: int, one: Finding) -> Card:
    rule = next((rule for rule in RULES if rule.code == one.rule), None)
    return Card(
        id=f"finding-{number}",
        finding=one,
        title=rule.title if rule is not None else one.rule,
        places=tuple(map(place_name, one.places)),
        sections=_sections(rule.text) if rule is not None else (),
        gain=None if one.gain is None else _interval(one.gain),
    )


def _sections(text: str) -> tuple[Section, ...]:
    """Split an explanation at its headings, which stand at the margin."""
    sections: list[Section] = []
    lines: list[str] = []

    def close() -> None:
        if sections:
            sections[-1] = Section(sections[-1].heading, _paragraphs(lines))
        lines.clear()

    for line in text.splitlines()[1:]:
        if line and not line.startswith(" "):
            close()
            sections.append(Section(line, ()))
        else:
            lines.append(line.removeprefix("    "))
    close()
    return tuple(sections)


def _paragraphs(lines: list[str]) -> tuple[tuple[str, bool], ...]:
    """Join lines to paragraphs; what is indented further is code, line by line."""
    blocks = [block.splitlines() for block in "\n".join(lines).strip("\n").split("\n\n")]
    return tuple(
        ("\n".join(line[4:] for line in block), True)
        if all(line.startswith("    ") for line in block)
        else (" ".join(line.strip() for line in block), False)
        for block in blocks
        if block
    )


def _interval(gain: Gain) -> intervals.Interval:
    unit = "points" if gain.unit == "points" else "of loss"
    word = "confirmed" if gain.helps else "opposite" if gain.high < 0 else "open"
    return intervals.interval(
        Comparison("", unit, gain.change, gain.low, gain.high, 0, word)  # type: ignore[arg-type]
    )


def _score(value: float, gain: Gain) -> str:
    return f"{value:.1f}\u00a0%" if gain.unit == "points" else f"{value:.4f}"
