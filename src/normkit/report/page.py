"""The page: findings in, one self-contained HTML file out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from normkit.lab.findings import TOPICS, Family, Finding, PartWord, Verdict
from normkit.report import intervals, payload, views
from normkit.report.shell import check_target, render_page, write_page
from normkit.report.surprises import RULE, surprises

__all__ = ["check_target", "render", "write"]

_WORDS: tuple[Verdict, ...] = ("confirmed", "partly", "refuted", "open")
_PART_WORDS: tuple[PartWord, ...] = ("confirmed", "too small to matter", "opposite", "open")
# Beside each of the examples.
_RULES = (
    "the interval lies above zero, and the effect is at least what matters (the edge of the band).",
    "or, with a margin (dashed): the interval lies above it, so no more than that is lost.",
    "the interval lies inside the band of what does not matter.",
    "the interval lies below zero; where there is a margin, below the margin.",
    "none of these. Where it can be told, a range says how many seeds would decide: "
    "about four of five such ranges hold the number that was needed.",
)


def write(findings: Sequence[Finding], path: Path, *, about: Mapping[str, str]) -> Path:
    """Write the report of ``findings`` to ``path`` and return the path.

    The file is one HTML page that opens without a network and carries its charts, its data and
    the program that draws them. It appears whole or not at all: it is written beside its place
    and moved there. Missing folders are made.

    Args:
        findings: what the lab found, in the order in which the page shows it. None at all is
            allowed; the page then says how to get some.
        path: the file to write; one that exists is replaced.
        about: what the page says about itself: versions, machine, date, preset, total time, each
            under its own name. ``notice``, if there, is shown where no reader can miss it.

    Raises:
        StoreError: the folder or the file cannot be written, or the file is something else than
            a report.

    See the example in :mod:`normkit.report`.
    """
    path = Path(path)
    check_target(path)
    return write_page(path, render(findings, about=about))


def render(findings: Sequence[Finding], *, about: Mapping[str, str]) -> str:
    """The page as text; :func:`write` puts it in its place.

    >>> page = render([], about={"notice": "a <small> trial"})
    >>> "a &lt;small&gt; trial" in page, "http-equiv=" in page
    (True, True)
    """
    claims = views.claims(findings)
    # Runs that claims share have one key.
    once = {
        record["key"]: record
        for finding in findings
        for record in finding.records
        if record.get("status") in ("done", "diverged") and "key" in record
    }
    return render_page(
        "page.html.j2",
        sheets=("wall.css", "claim.css"),
        programs=("wall.js",),
        claims=claims,
        tally=_counts(_WORDS, [finding.word for finding in findings]),
        topics=_counts(TOPICS, [finding.topic for finding in findings]),
        surprises=_surprises(claims),
        surprising=RULE,
        part_words=_PART_WORDS,
        rules=_RULES,
        family=Family.of(findings),
        examples=views.parts(intervals.EXAMPLES),
        runs=len(once),
        seconds=sum(record["seconds"] for record in once.values()),
        about={key: value for key, value in about.items() if key != "notice"},
        notice=about.get("notice", ""),
        verdicts=_verdicts(findings),
        effects=sum(max(1, len(finding.comparisons)) for finding in findings),
    )


def _counts(words: Sequence[str], of: Sequence[str]) -> list[tuple[str, int]]:
    """Count words, in their own order, and leave out those that do not occur."""
    return [(word, of.count(word)) for word in words if word in of]


def _surprises(claims: Sequence[views.ClaimView]) -> list[tuple[views.ClaimView, views.Part]]:
    """Choose the results for the first screen, each with its claim."""
    chosen = surprises([claim.finding for claim in claims])
    by_finding = {id(claim.finding): claim for claim in claims}
    return [(by_finding[id(finding)], views.parts([part])[0]) for finding, part in chosen]


def _verdicts(findings: Sequence[Finding]) -> Markup:
    """The overview as a download: one row for each comparison."""
    rows: list[dict[str, Any]] = [
        {
            "claim": finding.key,
            "title": finding.title,
            "topic": finding.topic,
            "verdict": finding.word,
            "confirmed_parts": finding.confirmed,
            "parts": finding.parts,
            **row,
        }
        for finding in findings
        for row in ([dataclasses.asdict(one) for one in finding.comparisons] or [{}])
    ]
    about = {"what": "verdicts of normkit's lab"}
    return payload.embed({"name": "normkit-verdicts", "about": about, **payload.table(rows)})
