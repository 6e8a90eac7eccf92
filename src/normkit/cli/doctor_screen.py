"""Print a diagnosis, an explanation, and what was mended."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from normkit.doctor.finding import list_places
from normkit.doctor.treatments import RECALIBRATE_ON_EVALUATION

if TYPE_CHECKING:
    from normkit.cli.doctor_mend import Mended
    from normkit.cli.doctor_run import Outcome, Request
    from normkit.doctor.diagnosis import Diagnosis
    from normkit.doctor.finding import Finding, Gain
    from normkit.doctor.rules import Rule

__all__ = ["diagnosis_lines", "explanation_lines", "outcome_lines", "print_lines", "rule_list"]

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
WIDEST = 110
"""Longer lines are hard to read, however wide the terminal is."""

DEFAULTS = {"samples": "10000", "device": "cpu"}
INDENT = 4
LABELS = {"do": "do      ", "brings": "brings  "}
GROUPS = {
    "1": "The model and its optimizer",
    "2": "With training batches",
    "3": "With evaluation batches",
}


def print_lines(out: Console, lines: Sequence[Text]) -> None:
    """Print lines that are wrapped already."""
    for line in lines:
        out.print(line, soft_wrap=True)


def diagnosis_lines(result: Diagnosis, titles: dict[str, str], width: int | None) -> list[Text]:
    """Return a diagnosis as lines.

    Args:
        titles: of the rules, by code.
        width: columns to wrap at; None for lines as long as they are, as in a file.
    """
    headline, examined = result.head
    if result.gain is not None:
        examined += "; in brackets: 95 % interval"
    lines = [*_wrapped(headline, width, style="bold"), *_wrapped(examined, width)]
    acts: dict[str, int] = {}
    for number, one in enumerate(result.findings, 1):
        same = None
        if one.gain is not None and one.treatment is not None:
            same = acts.setdefault(one.treatment.key, number)
        lines += [Text(), *_finding(number, one, titles.get(one.rule, ""), same, width)]
    if result.notes:
        lines += [Text(), *(line for note in result.notes for line in _wrapped(note, width))]
    return lines


def _finding(
    number: int, one: Finding, title: str, same: int | None, width: int | None
) -> list[Text]:
    style = STYLES[one.severity]
    head = f"{number}. {one.severity} {one.rule}"
    lines = _wrapped(f"{head} {title or one.where}", width, later=INDENT)
    lines[0].stylize(style, 0, len(head))
    lines[0].stylize("bold", len(head))
    for line in lines[1:]:
        line.stylize("bold")
    if title and one.places:
        lines += _wrapped(f"at {one.where}", width, INDENT, style="cyan")
    lines += _wrapped(one.says, width, INDENT)
    lines += _labelled("do", one.do, width)
    if one.gain is not None and same not in (None, number):
        lines += _labelled("brings", f"the same as {same}: one act mends both", width)
    elif one.gain is not None:
        lines += _labelled("brings", str(one.gain), width, "green" if one.gain.helps else "")
    return lines


def _labelled(label: str, text: str, width: int | None, style: str = "") -> list[Text]:
    words = LABELS[label]
    lines = _wrapped(words + text, width, INDENT, later=INDENT + len(words), style=style)
    lines[0].stylize("dim", INDENT, INDENT + len(label))
    return lines


def _wrapped(
    text: str, width: int | None, first: int = 0, later: int | None = None, style: str = ""
) -> list[Text]:
    rows = [" " * first + text]
    if width is not None:
        rows = textwrap.wrap(
            text, min(width, WIDEST),
            initial_indent=" " * first,
            subsequent_indent=" " * (first if later is None else later),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return [Text(row, style=style) for row in rows or [""]]


def outcome_lines(outcome: Outcome, width: int | None) -> list[Text]:
    """Return what was mended and written, and what to type next."""
    request, mended = outcome.request, outcome.mended
    lines: list[Text] = []
    if mended is not None:
        lines += [Text(), *_mended(mended, request, width)]
    files = [("page", request.page), ("SARIF", request.sarif)]
    written = [Text(f"Wrote {name}: {path}") for name, path in files if path is not None]
    lines += [Text(), *written] if written else []
    findings = outcome.diagnosis.findings
    if findings:
        code = findings[0].rule
        lines += [Text(), *_next("why   ", f"normkit doctor --explain {code}")]
        helps = any(one.can_mend and (one.gain is None or one.gain.helps) for one in findings)
        if mended is None and helps:
            stem = "" if request.checkpoint is None else f"{request.checkpoint.stem}."
            lines += _next("mend  ", command_line(request, mend=Path(f"{stem}mended.pt")))
    if mended is not None and mended.entries:
        lines += _next("check ", command_line(request, checkpoint=request.mend, mend=None))
    return lines


def _next(label: str, command: str) -> list[Text]:
    """Return a command to type next, in one line so that it can be copied."""
    return [Text.assemble((label, "dim"), "  ", command)]


def command_line(request: Request, **changes: Path | None) -> str:
    """Return the command of a request, with some options changed.

    Where the checkpoint is another one, its part and its classes are as before.
    """
    words = ["normkit", "doctor", request.model]
    values = {**dataclasses.asdict(request), **changes}
    for name in ("checkpoint", "key", "trust", "train", "test", "optimizer", "samples", "forward",
                 "loss", "device", "mend"):  # fmt: skip
        chosen = values[name]
        if chosen is None or chosen == DEFAULTS.get(name):
            continue
        for value in chosen if isinstance(chosen, (list, tuple)) else (chosen,):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _mended(mended: Mended, request: Request, width: int | None) -> list[Text]:
    if not mended.entries:
        lines = [Text("Mended nothing; no file was written.", style="bold")]
    else:
        brings = "" if mended.gain is None else f": {_change(mended.gain)}"
        lines = _wrapped(f"Wrote {request.mend}{brings}", width, style="bold green")
    for one in mended.done:
        text = f"mended {one.rule}{_at(one)}"
        if one.treatment is not None and not one.treatment.parts and not one.do.startswith("nk."):
            text += f"; also: {one.do}"
        if one.treatment is not None and one.treatment.key == RECALIBRATE_ON_EVALUATION:
            text += ". The new statistics are those of the evaluation batches"
        lines += _wrapped(text, width, INDENT)
    for change, names in mended.program.items():
        text = f"change it in your program too: {change} at {list_places(names)}"
        lines += _wrapped(text, width, INDENT, style="yellow")
    for one, why in mended.skipped:
        lines += _wrapped(f"left {one.rule}{_at(one)}: {why}", width, INDENT)
    return lines


def _at(one: Finding) -> str:
    return f" at {one.where}" if one.places else ""


def _change(gain: Gain) -> str:
    percent = gain.unit == "points"
    before, after = (f"{x:.1f} %" if percent else f"{x:.4f}" for x in gain[:2])
    return f"{before} → {after}, {gain}"


def explanation_lines(rule: Rule) -> list[Text]:
    """Return a rule's explanation, its headings in bold."""
    head, *body = rule.text.splitlines()
    lines = [Text.assemble((rule.code, "bold cyan"), " ", (head, "bold"))]
    return lines + [Text(row, style="bold" if row[:1].isalpha() else "") for row in body]


def rule_list(rules: Sequence[Rule], width: int | None) -> list[Text]:
    """Return the codes and titles of rules, by what they need."""
    lines: list[Text] = []
    for digit, heading in GROUPS.items():
        group = [rule for rule in rules if rule.code[2] == digit]
        if not group:
            continue
        lines += [Text(heading, style="bold")]
        for rule in group:
            rows = _wrapped(f"{rule.code}  {rule.title}", width, 2, later=9)
            rows[0].stylize("cyan", 2, 2 + len(rule.code))
            lines += rows
    return lines
