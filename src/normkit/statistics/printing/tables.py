"""Tables that results print: layers, shifts and shares in plain decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normkit.handle import SHOWN, Skipped, kind, place_name

__all__ = [
    "format_deviations",
    "format_errors",
    "format_factor",
    "format_percent",
    "format_size",
    "format_table",
    "layer_label",
]

LEAST = 1e-5
"""Smaller shares are printed as less than this."""

MOST = 1_000_000
"""Larger figures are printed as more than this: their digits tell nothing."""


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], skipped: Sequence[Skipped], rest: str = ""
) -> list[str]:
    """Format a table, its first column aligned left; then the skipped layers, and why.

    ``rest`` describes the rows beyond the last one shown.
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
    return table + [f"  {layer_label(row.name, row.type)} skipped: {row.why}" for row in skipped]


def layer_label(name: str, cls: type) -> str:
    """Name a layer with its class."""
    return f"{place_name(name)} ({kind(cls)})"


def format_deviations(value: float) -> str:
    """Format a distance of means."""
    return f"{_decimals(value)} σ" if math.isfinite(value) else "not finite"


def format_factor(value: float) -> str:
    """Format a ratio of variances, up or down.

    >>> format_factor(1.25), format_factor(1e30)
    ('×÷ 1.25', '×÷ over 1,000,000')
    """
    return f"×÷ {_decimals(value)}" if math.isfinite(value) else "not finite"


def _decimals(value: float, digits: int = 2) -> str:
    return f"over {MOST:,}" if value > MOST else f"{value:,.{digits}f}"


def format_errors(number: float) -> str:
    """Format a number of standard errors."""
    if math.isnan(number):
        return "unknown"
    return _decimals(number, 1) if math.isfinite(number) else "not finite"


def format_size(size: float) -> str:
    """Format the mean size of batches, with three significant digits at least.

    >>> format_size(32 / 3), format_size(1024.0)
    ('10.7', '1,024')
    """
    if not math.isfinite(size):
        return "unknown"
    if size < 1:
        return "under 1"
    return f"{size:.3g}" if size < 999.5 else _decimals(size, 0)


def format_percent(share: float) -> str:
    """Format a share in percent, with two significant digits, in plain decimals.

    >>> [format_percent(x) for x in (0.0074, 0.25, 1.24, 123.4, 0.0, math.nan, math.inf)]
    ['0.74 %', '25 %', '120 %', '12,000 %', '0 %', 'unknown', 'not finite']
    >>> format_percent(1e-9), format_percent(2.6e15)
    ('under 0.001 %', 'over 1,000,000 %')
    """
    if not math.isfinite(share):
        return "unknown" if math.isnan(share) else "not finite"
    if 0 < abs(share) < LEAST:
        return f"under {100 * LEAST:g} %"
    if 100 * abs(share) > MOST:
        return f"over {MOST:,} %"
    value = float(f"{100 * share:.2g}")
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"
