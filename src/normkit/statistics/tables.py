"""How statistics are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normkit.handle import SHOWN, Left, kind, place_name

__all__ = ["deviations", "factor", "lines", "named", "percent", "plain"]


def lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[Left], rest: str = ""
) -> list[str]:
    """A table, its first column to the left; then what was left, and why.

    ``rest`` says in words what the rows are that find no room.
    """
    shown = [head, *rows[:SHOWN]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    table = [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(w)}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in shown
    ]
    if len(rows) > SHOWN:
        table.append(f"  … and {len(rows) - SHOWN} more{rest}")
    return table + [f"  {named(row.name, row.type)} left: {row.why}" for row in left]


def named(name: str, cls: type) -> str:
    """A layer by its place and its class."""
    return f"{place_name(name)} ({kind(cls)})"


def deviations(value: float) -> str:
    """A distance of means."""
    return "not finite" if not math.isfinite(value) else f"{value:.2f} σ"


def factor(value: float) -> str:
    """A ratio of variances, up or down."""
    return "not finite" if not math.isfinite(value) else f"×÷ {value:.2f}"


def percent(share: float) -> str:
    """A share; a dash where nobody can know it."""
    return "–" if math.isnan(share) else f"{100 * share:.2g} %"


def plain(value: float) -> str:
    """A number; a dash where nobody can know it."""
    return "–" if math.isnan(value) else f"{value:.1f}"
