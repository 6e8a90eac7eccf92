"""``normkit lab show``: a claim's page, in the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_list import if_there
from normkit.cli.lab_options import STORE, WORD_STYLE, PresetOption, StoreOption
from normkit.cli.options import Json

if TYPE_CHECKING:
    from rich.console import Console

    from normkit.lab import findings
    from normkit.lab.claims.claim import Claim
    from normkit.lab.findings import Comparison, Finding
    from normkit.lab.store import Store

__all__ = ["show"]

WIDEST = 100
"""Columns of running text; longer lines are hard to read."""
LABEL = 13
ROWS = 12
"""Rows of a table that are printed without --tables."""
PART_STYLE = {
    "confirmed": "green", "too small to matter": "red", "opposite": "red", "open": "yellow",
}  # fmt: skip


def show(
    claims: Annotated[list[str], typer.Argument(metavar="CLAIM", help="Claims, such as C3.")],
    store: StoreOption = STORE,
    preset: PresetOption = None,
    tables: Annotated[
        bool, typer.Option("--tables", metavar="", help="Print all tables in full, seed by seed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print all about a claim: what it says, what was expected, and what came out, part by part."""
    needs_lab()
    with errors():
        from normkit.lab.claims.registry import select

        with if_there(store) as opened:
            pairs = [
                (claim, _finding(opened, claim, preset.value if preset else None))
                for claim in select(claims)
            ]
    if as_json:
        print_json([_as_data(*pair) for pair in pairs])
        return
    for claim, finding in pairs:
        _Page(console(), whole=tables).print(claim, finding)


def _finding(store: Store | None, claim: Claim, preset: str | None) -> Finding | None:
    """Judge a claim by what is in the store; None where it was not run."""
    from normkit.lab.judge import judge

    name = preset or (store.last_preset(claim.key) if store else None)
    if store is None or name is None:
        return None
    return next(iter(judge(store, name, [claim])), None)


def _as_data(claim: Claim, finding: Finding | None) -> dict[str, Any]:
    """Return a claim as plain values, with what was found, without charts and single runs."""
    return {
        "claim": claim.key,
        "title": claim.title,
        "statement": claim.statement,
        "sources": [dataclasses.asdict(each) for each in claim.sources],
        "prediction": claim.prediction,
        "decision": claim.decision,
        "source_setup": dict(claim.source_setup),
        "at_scale": [dataclasses.asdict(each) for each in claim.at_scale],
        "finding": None if finding is None else _finding_data(finding),
    }


def _finding_data(finding: Finding) -> dict[str, Any]:
    whole = dataclasses.asdict(finding)
    known = ("key", "title", "statement", "sources", "prediction", "at_scale", "charts", "records")
    return {name: value for name, value in whole.items() if name not in known} | {
        "verdict": finding.verdict,
        "planned": len(finding.records),
        "preset": dict(finding.setup).get("preset"),
    }


class _Page:
    """Prints a claim, a paragraph at a time, each with its label on the left."""

    def __init__(self, out: Console, *, whole: bool) -> None:
        self.out, self.whole = out, whole
        self.width = min(out.width, WIDEST)

    def print(self, claim: Claim, finding: Finding | None) -> None:
        """Print the claim, and what was found of it."""
        self.out.print(Text.assemble((f"{claim.key}  ", "bold"), (claim.title, "bold")))
        self.verdict(claim, finding)
        self.paragraph("claim", claim.statement)
        for source in claim.sources:
            self.paragraph("source", f"{source.source}: {source.figures}")
        self.paragraph("expected", claim.prediction)
        if finding is None:
            self.paragraph("decided by", claim.decision)
        else:
            self.outcome(finding)
        self.at_scale(claim.at_scale)
        if finding is not None:
            self.figures(finding)
        self.out.print()

    def verdict(self, claim: Claim, finding: Finding | None) -> None:
        """Print the verdict with what it rests on, or how to get one."""
        if finding is None:
            self.paragraph("verdict", f"not run; run it with: normkit lab run {claim.key}")
            return
        about = dict(finding.setup)
        rests = f"{finding.runs} of {len(finding.records)} runs, {about.get('seeds')} seeds"
        words = Text(finding.verdict, WORD_STYLE[finding.word])
        words.append(f"  ({about.get('preset')} preset, {rests})", "dim")
        self.paragraph("verdict", words)

    def outcome(self, finding: Finding) -> None:
        """Print what came out: in a sentence, part by part, beside the source, in practice."""
        self.paragraph("found", finding.sentence)
        for deciding in (True, False):
            parts = [each for each in finding.comparisons if each.decides is deciding]
            for number, part in enumerate(parts, 1):
                label = f"part {number} of {finding.parts}" if deciding else "beside it"
                self.paragraph(label, _part(part, decides=deciding))
        if missing := finding.parts - sum(each.decides for each in finding.comparisons):
            self.paragraph("", f"{missing} of {finding.parts} parts not measured yet")
        self.paragraph("holds", finding.holds)
        self.paragraph("in practice", finding.practice)
        self.paragraph("differs", finding.differs)
        self.paragraph("images", finding.data)

    def figures(self, finding: Finding) -> None:
        """Print the tables, and with all of them the settings."""
        if finding.here is not None:
            self.table(finding.here)
        for table in finding.tables:
            self.table(table)
        if self.whole:
            for what, value in finding.setup:
                self.paragraph(what if len(what) < LABEL else f"{what}:", value)

    def at_scale(self, studies: Iterable[findings.AtScale]) -> None:
        """Print what larger studies found."""
        for study in studies:
            self.paragraph("at scale", f"{study.word}: {study.figures} ({study.source})")

    def paragraph(self, label: str, text: str | Text) -> None:
        """Print a text beside its label; nothing for an empty one."""
        if not text:
            return
        body = Text(text) if isinstance(text, str) else text
        if self.width < 50:
            self.out.print(Text(label, "dim"))
            self.out.print(Padding(body, (0, 0, 0, 2)), width=self.width)
            return
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=LABEL)
        grid.add_column(width=self.width - LABEL - 2)
        grid.add_row(Text(label, "dim"), body)
        self.out.print(grid)

    def table(self, table: findings.Table) -> None:
        """Print a table, long ones in part unless all is wanted."""
        from normkit.report.text import decimals, number

        rows = table.rows if self.whole or len(table.rows) <= ROWS else table.rows[:ROWS]
        places = [
            decimals([row[column] for row in table.rows]) for column in range(len(table.columns))
        ]
        self.out.print(Text(table.title, "bold"), width=self.width)
        grid = Table(*table.columns)
        for row in rows:
            grid.add_row(*(
                number(cell, decimals=place if isinstance(cell, float) else None)
                for cell, place in zip(row, places, strict=True)
            ))  # fmt: skip
        self.out.print(grid)
        if rest := len(table.rows) - len(rows):
            self.out.print(f"and {rest} rows more: add --tables", style="dim")


def _part(part: Comparison, *, decides: bool) -> Text:
    """Return a part: its word, the question, the effect with its interval, what would matter."""
    from normkit.report import intervals
    from normkit.report.markdown import effect

    words = Text()
    if decides:
        words.append(part.word, PART_STYLE[part.word])
        words.append(": ")
    words.append(effect(part))
    notes = [each for each in (intervals.limits(part), intervals.remark(part)) if each]
    # The margin stands in the effect already.
    notes = [each for each in notes if not each.startswith("margin")]
    if notes:
        words.append(f" ({'; '.join(notes)})", "dim")
    return words
