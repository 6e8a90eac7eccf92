"""Results as Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normkit.bench.cases import preset_cases
from normkit.bench.recording import figures
from normkit.bench.show import number, short_name
from normkit.errors import OptionError, explain

__all__ = ["BEGIN", "CHARTS", "END", "between", "tables"]

BEGIN = "<!-- results: made by benchmarks/record.py, not by hand -->"
END = "<!-- end of results -->"

CHARTS = {
    "speed": "Times as fast as torch.nn: each dot is a case, diamonds are geometric means",
    "steps": "Time of a training step in normalization, convolution and the rest",
}
"""The charts by the end of their file's name, with what they show."""

Record = Mapping[str, Any]


def between(text: str, new: str) -> str:
    """A document with what stands between its markers replaced.

    Raises:
        OptionError: a marker is missing.

    >>> between(f"a {BEGIN} old {END} b", "new").replace(BEGIN, "[").replace(END, "]")
    'a [\\n\\nnew\\n\\n] b'
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise OptionError(
            explain("results go between two markers", f"a text without {BEGIN}", "put it in")
        )
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def tables(results: Record) -> str:
    """The machine, the figures with their targets, the steps, and the default cases."""
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
        rows.append((figure.text, f"**{number(figure)}** {figure.unit}", target, word, note))
    return _table(("what", "result", "target", "", "more"), rows)


def _cases(cases: Sequence[Record]) -> str:
    chosen = {case.name for case in preset_cases("default")}
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
        if r["case"] in chosen and r["measure"] == "act"
    ]
    if not rows:
        return ""
    head = ("layer", "what", "allocator", "torch.nn, ms", "normkit, ms", "times as fast",
            "copies", "GB/s", "% of limit")  # fmt: skip
    title = "Layers with ReLU, of the default preset (cl: channels-last)"
    return f"<details><summary>{title}</summary>\n\n{_table(head, rows)}\n\n</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
