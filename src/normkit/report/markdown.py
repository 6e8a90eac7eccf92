"""Verdicts as a Markdown table, for a README; and its place between two marks in a file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from normkit.errors import StoreError, message
from normkit.lab.findings import Comparison, Family, Finding
from normkit.report import intervals
from normkit.report.text import number

__all__ = ["BEGIN", "END", "effect", "put_between", "table", "together"]

BEGIN = "<!-- normkit lab verdicts: begin -->"
END = "<!-- normkit lab verdicts: end -->"


def table(findings: Sequence[Finding], caption: str, *, short: bool = False) -> str:
    """One row for each claim: its verdict, its parts with intervals, from how many seeds.

    A ``short`` table has of each claim the first part, and those that are not confirmed.
    """
    head = ["claim", "verdict", "deciding effects [95 % CI]", *(() if short else ("seeds",))]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for finding in findings:
        deciding = [each for each in finding.comparisons if each.decides]
        missing = len(finding.records) - finding.runs
        progress = f" ({finding.runs} of {len(finding.records)} runs done)" if missing else ""
        if short:
            others = [each for each in deciding[1:] if each.word != "confirmed"]
            shown = (*deciding[:1], *others)
            effects = [_part(each, alone=each.word == "confirmed", remarks=False) for each in shown]
        else:
            effects = [_part(each, alone=finding.parts < 2) for each in deciding]
            if unmeasured := finding.parts - len(deciding):
                effects.append(f"{unmeasured} of {finding.parts} parts not measured")
        rows.append(
            f"| {finding.key} {_cell(finding.title)} | {finding.verdict}{progress} "
            f"| {'<br>'.join(map(_cell, effects))} |" + ("" if short else f" {_seeds(deciding)} |")
        )
    return "\n".join([*rows, "", caption])


def _seeds(parts: Sequence[Comparison]) -> str:
    counts = sorted({each.seeds for each in parts})
    return "–".join(str(each) for each in dict.fromkeys((*counts[:1], *counts[-1:])))


def _part(comparison: Comparison, *, alone: bool, remarks: bool = True) -> str:
    """An effect with its word and a remark; one that is alone has the claim's word."""
    words = [effect(comparison)]
    if not alone:
        words.append(comparison.word)
    if remarks and (remark := intervals.remark(comparison)):
        words.append(remark)
    return "; ".join(words)


def together(findings: Sequence[Finding]) -> str:
    """Say what remains of the confirmed parts when all of them are tested together.

    >>> together([])
    'No deciding part is judged yet.'
    """
    family = Family.of(findings)
    if not family.parts:
        return "No deciding part is judged yet."
    return (
        f"{family.confirmed} of {family.parts} deciding parts are confirmed; chance alone would "
        f"confirm up to {family.expected:.1f} if no effect existed. Corrected for all of them "
        f"together (Holm), {family.survive} stay confirmed."
    )


def effect(comparison: Comparison) -> str:
    """An effect in words: the question, and the answer with its interval.

    >>> effect(Comparison("Faster: how much higher is accuracy?", "points",
    ...                   13.5752, 11.2751, 15.8752, 5, "confirmed"))
    'Faster: how much higher is accuracy? 13.6 [11.3, 15.9] points'
    """
    value, low, high = (
        number(each, decimals=comparison.decimals)
        for each in (comparison.effect, comparison.low, comparison.high)
    )
    bounds = "" if comparison.low == comparison.high else f" [{low}, {high}]"
    text = f"{comparison.question} {value}{bounds} {comparison.unit}".rstrip()
    if comparison.margin:
        text += f" (margin {number(comparison.margin)})"
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
                message(
                    f"a file with the marks {BEGIN} and {END}, once each and in this order",
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
            message(
                "a text file that can be read and written",
                f"{path}: {error}",
                "name another with --into",
            )
        ) from error
    return True
