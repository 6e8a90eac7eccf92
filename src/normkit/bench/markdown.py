"""Format results as Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normkit.bench.cases import preset_cases
from normkit.bench.results_file import figures
from normkit.bench.terminal import format_value, short_name
from normkit.errors import OptionError, message

__all__ = ["BEGIN", "CHARTS", "END", "replace_between_markers", "table", "tables"]

BEGIN = "<!-- results: made by benchmarks/record.py, not by hand -->"
END = "<!-- end of results -->"

CHARTS = {
    "speed": "Times as fast as torch.nn: each dot is a case, diamonds are geometric means",
    "steps": "Time of a training step in normalization, convolution and the rest",
}
"""Alternative text of each chart, by the end of its file's name."""

Record = Mapping[str, Any]


def replace_between_markers(text: str, new: str) -> str:
    """Return a document with the text between its markers replaced.

    Raises:
        OptionError: a marker is missing.

    >>> text = replace_between_markers(f"a {BEGIN} old {END} b", "new")
    >>> text.replace(BEGIN, "[").replace(END, "]")
    'a [\\n\\nnew\\n\\n] b'
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise OptionError(
            message("a text with the two markers of results", f"one without {BEGIN}", "add it")
        )
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def tables(results: Record) -> str:
    """Format the machine, the figures with their targets, the steps, and the default cases."""
    about = results["machine"]
    parts = [
        f"{results['date']}: {about['processor']} ({about['vector_instructions']}), "
        f"{about['threads']} threads, {about['libc']}, torch {about['torch']}, normkit "
        f"{about['normkit']}. Kernels: {about['kernels']}. "
        f"Preset `{results['settings']['preset']}`, {len(results['cases'])} measurements.",
        *(f"![{words}](benchmarks-{name}.svg)" for name, words in CHARTS.items()),
        _figures(results),
        _cases(results["cases"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(results: Record) -> str:
    rows = []
    for figure in figures(results):
        target = "" if figure.target is None else f"{figure.bound} {figure.target:g}"
        word = {None: "", True: "reached", False: "**not reached**"}[figure.reached]
        note = figure.note.replace("|", "\\|")
        rows.append((figure.text, f"**{format_value(figure)}** {figure.unit}", target, word, note))
    return table(("what", "result", "target", "", "more"), rows)


def _cases(cases: Sequence[Record]) -> str:
    names = {case.name for case in preset_cases("default")}
    rows = [
        (
            short_name(r),
            r["measure"] if r["mode"] == "train" else f"{r['measure']}, eval",
            r["allocator"],
            f"{r['ms']['torch']:.3f}",
            f"{r['ms']['ours']:.3f}",
            f"{r['ratio']:.2f}",
            f"{r['copies']:.2f}",
            f"{r['gb_per_s']:.1f}",
            f"{100 * r['of_limit']:.0f}",
        )
        for r in cases
        if r["case"] in names and r["measure"] == "act"
    ]
    if not rows:
        return ""
    head = ("layer", "what", "allocator", "torch.nn, ms", "normkit, ms", "times as fast",
            "copies", "GB/s", "% of limit")  # fmt: skip
    title = "Layers with ReLU, of the default preset (cl: channels-last)"
    return f"<details><summary>{title}</summary>\n\n{table(head, rows)}\n\n</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; cells must not contain a bare vertical bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
