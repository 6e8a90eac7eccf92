"""Print and write findings: the report, JSON, a line for each, a table."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from normkit.cli.console import console
from normkit.cli.lab_options import WORD_STYLE
from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from normkit.lab.findings import Finding
    from normkit.lab.judge import Judged
    from normkit.lab.runs import Run

__all__ = [
    "as_data",
    "check_report",
    "line",
    "print_findings",
    "print_page",
    "print_sentences",
    "short_title",
    "write",
]

LINE = 230
"""Characters of a verdict in one line."""
FEW = 8
"""Claims whose findings are printed in full."""


def check_report(report: Path, store: Path) -> None:
    """Raise if the report cannot be written, or would overwrite the store."""
    from normkit.report import check_target

    if report.resolve() == store.resolve():
        raise OptionError(
            message(
                "the report and the store to be two files",
                f"{report} for both",
                "name another file with --report",
            )
        )
    check_target(report)


def write(judged: Judged, path: Path, preset: str, seconds: float | None) -> Path:
    """Write the report and return its path; ``seconds`` is the time it took, None if unknown."""
    from normkit import report as page
    from normkit.lab import machine
    from normkit.report.text import duration

    findings, runs = judged
    about = {
        "preset": preset,
        "trained on": "; ".join(dict.fromkeys(run.machine for run in runs)) or machine.summary(),
        **_versions(runs),
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    if seconds is not None:
        about["total time"] = duration(seconds)
    if any(record.get("edition") == "subset" for finding in findings for record in finding.records):
        about["notice"] = (
            "Made with the small subset of the data that normkit ships, because the full data set "
            "was not available. Fetch it with: normkit data fetch"
        )
    return page.write(findings, path, about=about)


def _versions(runs: Sequence[Run]) -> dict[str, str]:
    """Return the versions that the runs were computed with, or this process's if there are none."""
    from normkit.lab import machine

    if not runs:
        return machine.versions()
    names = dict.fromkeys(name for run in runs for name in run.versions)
    return {
        name: "; ".join(dict.fromkeys(run.versions.get(name, "unknown") for run in runs))
        for name in names
    }


def as_data(findings: Sequence[Finding], path: Path) -> dict[str, Any]:
    """Return the findings as plain values, without charts and single runs."""
    import dataclasses

    return {
        "report": str(path),
        "findings": [
            {
                name: value
                for name, value in dataclasses.asdict(finding).items()
                if name not in ("charts", "records")
            }
            for finding in findings
        ],
    }


def short_title(title: str) -> str:
    """Return a claim's title for a narrow column, with the field's abbreviation.

    >>> short_title("Batch normalization tolerates larger learning rates")
    'BN tolerates larger learning rates'
    """
    return title.replace("Batch normalization", "BN").replace("batch normalization", "BN")


def line(finding: Finding) -> Text:
    """Say the verdict in one line: the claim, the word, how many parts, the sentence, shortened."""
    from normkit.report.text import shorten

    return Text.assemble(
        (f"{finding.key:<4}", "bold"),
        f"{short_title(finding.title)}: ",
        (finding.verdict, WORD_STYLE[finding.word]),
        f". {shorten(finding.sentence, LINE)}",
    )


def print_sentences(findings: Sequence[Finding]) -> None:
    """Print what was found, a paragraph a claim; of many claims, where that is to be read."""
    out = console()
    if len(findings) > FEW:
        out.print("normkit lab show C1 prints all about a claim.")
        return
    for finding in findings:
        out.print(Text.assemble((f"{finding.key:<4}", "bold"), finding.sentence))


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table of findings."""
    table = Table("claim", "verdict", "finding", "runs", show_lines=True)
    for finding in findings:
        table.add_row(
            finding.key,
            Text(finding.verdict, style=WORD_STYLE[finding.word]),
            finding.sentence,
            str(finding.runs),
        )
    console().print(table)


def print_page(findings: Sequence[Finding], path: Path) -> None:
    """Say what holds of all findings on the page together, and where the page is."""
    from normkit.report.markdown import together

    out = console()
    out.print(together(findings), soft_wrap=True)
    out.print(f"Report: {path}", soft_wrap=True)
