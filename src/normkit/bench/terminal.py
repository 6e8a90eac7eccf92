"""Print results on the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normkit.bench.advice import advice
from normkit.bench.summary import Figure

__all__ = ["case_table", "figure_line", "format_value", "print_results", "short_name"]

Record = Mapping[str, Any]


def short_name(record: Record) -> str:
    """Return a short name of a case; of several networks, the first.

    >>> short_name({"case": "bn/resnet18+resnet50/32x64x56x56/channels-last"})
    'bn resnet18… 32×64×56×56 cl'
    """
    norm, networks, size, layout = record["case"].split("/")
    first, *others = networks.split("+")
    ending = " cl" if layout == "channels-last" else ""
    return f"{norm} {first}{'…' if others else ''} {size.replace('x', '×')}{ending}"


def case_table(cases: Sequence[Record]) -> Table:
    """Return a table with one row per measurement."""
    table = Table(title="cl: channels-last; % of limit: relative to the speed of copying")
    table.add_column("layer", no_wrap=True)
    for name in ("what", "allocator"):
        table.add_column(name)
    for name in ("torch ms", "ours ms", "times as fast", "95 %", "copies", "GB/s", "% of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in cases:
        low, high = r["ratio_interval"]
        what = r["measure"] if r["mode"] == "train" else f"{r['measure']}, eval"
        compiled = f" ({r['compiled_ratio']:.2f} compile)" if "compiled_ratio" in r else ""
        table.add_row(
            short_name(r),
            what,
            r["allocator"],
            f"{r['ms']['torch']:.3f}",
            f"{r['ms']['ours']:.3f}",
            f"{r['ratio']:.2f}{compiled}",
            f"{low:.2f}–{high:.2f}",
            f"{r['copies']:.2f}",
            f"{r['gb_per_s']:.1f}",
            f"{100 * r['of_limit']:.0f}",
        )
    return table


def format_value(figure: Figure) -> str:
    """Format a figure's value; counts without decimals."""
    if not math.isfinite(figure.value):
        return "an unknown number of"
    return f"{figure.value:.0f}" if figure.unit == "cases" else f"{figure.value:.2f}"


def figure_line(figure: Figure) -> Text:
    """Return a figure with what it was computed from; targets are for the documentation."""
    line = Text(f"{figure.text}: {format_value(figure)} {figure.unit}")
    if figure.note:
        line.append(f"\n    {figure.note}", style="dim")
    return line


def print_results(
    out: Console, results: Mapping[str, Any], figures: Sequence[Figure], *, table: bool = True
) -> None:
    """Print the table, what computed it, the machine, the speed beside torch.nn, and advice."""
    if table and results["cases"]:
        out.print(case_table(results["cases"]))
    ways = Counter(r["computed_by"][-1] for r in results["cases"] if "computed_by" in r)
    for way, rows in ways.items():
        out.print(f"computed by {way.removesuffix(': used')}: {rows} of {len(results['cases'])}",
                  soft_wrap=True)  # fmt: skip
    about = results["machine"]
    out.print(
        f"{about['processor']} ({about['vector_instructions']}), {about['threads']} threads, "
        f"{about['libc']}, torch {about['torch']}. Kernels: {about['kernels']}",
        soft_wrap=True,
    )
    for figure in figures:
        if figure.unit.startswith("times as fast"):
            out.print(figure_line(figure), soft_wrap=True)
    lines = advice(results)
    if lines:
        out.print("What to do:", style="bold")
    for line in lines:
        out.print(f"- {line}", soft_wrap=True)
