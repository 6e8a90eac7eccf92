"""Verdicts as a Markdown table, for a README; and its place between two marks in a file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from normkit.errors import StoreError, explain
from normkit.lab.findings import Comparison, Finding
from normkit.report.text import asked, number

__all__ = ["BEGIN", "END", "effect", "put_between", "table"]

BEGIN = "<!-- normkit lab verdicts: begin -->"
END = "<!-- normkit lab verdicts: end -->"

_SHARES = ("accuracy", "error", "test error", "share")
"""How units begin whose hundredths are called points."""


def table(findings: Sequence[Finding], caption: str) -> str:
    """One row for each claim: its verdict, what decided it with intervals, from how many seeds."""
    rows = [
        "| claim | verdict | what decides it, with 95 % interval | seeds |",
        "|---|---|---|---|",
    ]
    for found in findings:
        deciding = [each for each in found.comparisons if each.decides]
        seeds = sorted({each.seeds for each in deciding})
        counts = "–".join(str(each) for each in dict.fromkeys((*seeds[:1], *seeds[-1:])))
        missing = len(found.records) - found.runs
        left = f" ({found.runs} of {len(found.records)} runs done)" if missing else ""
        effects = "<br>".join(_cell(effect(each)) for each in deciding)
        rows.append(
            f"| {found.key} {_cell(found.title)} | {found.word}{left} | {effects} | {counts} |"
        )
    return "\n".join([*rows, "", caption])


def effect(found: Comparison) -> str:
    """An effect in words: what was asked, and the answer with its interval.

    The decimals are those that the interval leaves a meaning.

    >>> effect(Comparison("Faster (decides): how much higher is accuracy?", "accuracy",
    ...                   0.135752, 0.112751, 0.158752, 5, "supported"))
    'Faster: how much higher is accuracy? 13.6 [11.3, 15.9] points'
    """
    question = asked(found.question)
    share = found.unit.startswith(_SHARES)
    scale = 100 if share else 1
    _, comma, rest = found.unit.partition(", ")
    unit = f"points{comma}{rest}" if share else found.unit
    half = scale * (found.high - found.low) / 2
    places = None
    if math.isfinite(half) and half > 0:
        places = min(6, max(0, 1 - math.floor(math.log10(half))))
    value, low, high = (
        number(scale * each, decimals=places) for each in (found.effect, found.low, found.high)
    )
    text = f"{question} {value} [{low}, {high}] {unit}"
    if found.needed is not None:
        text += f"; about {found.needed} seeds would decide"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def put_between(path: Path, text: str) -> bool:
    """Replace what stands between the two marks in a file; whether that changed it.

    Raises:
        StoreError: the file cannot be read or written, or does not have each mark once, in order.
    """
    target = path.resolve()
    try:
        before = target.read_bytes().decode("utf-8")
        line = "\r\n" if "\r\n" in before else "\n"
        marks = [before.count(mark) for mark in (BEGIN, END)]
        if marks != [1, 1] or before.index(BEGIN) > before.index(END):
            raise StoreError(
                explain(
                    f"the table takes the place of what is between {BEGIN} and {END}",
                    f"{path}, with {marks[0]} of the first and {marks[1]} of the second"
                    + (", in the other order" if marks == [1, 1] else ""),
                    "put each into the file once, on a line of its own",
                )
            )
        head, rest = before.split(BEGIN)
        _, tail = rest.split(END)
        body = text.strip().replace("\n", line)
        after = f"{head}{BEGIN}{line}{body}{line}{END}{tail}"
        if after == before:
            return False
        part = target.with_name(f".{target.name}.part")
        try:
            part.write_bytes(after.encode("utf-8"))
            shutil.copymode(target, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            explain(
                "the table goes into a text file that can be read and written",
                f"{path}: {error}",
                "name another with --into",
            )
        ) from error
    return True
