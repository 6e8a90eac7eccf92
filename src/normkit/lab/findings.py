"""Findings, which the report draws: plain values, no tensors, no storage.

The lab makes findings, the report draws them, and neither knows how the other works. Everything
here is frozen and holds only strings, numbers and tuples, so a finding can be written to JSON and
read by another program.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

__all__ = ["Chart", "Comparison", "Finding", "Line", "Reference", "Table", "Verdict"]

Verdict = Literal["supported", "not supported", "undecided"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: ``y`` over ``x``, with an optional band from ``low`` to ``high``.

    ``y``, ``low`` and ``high`` may hold None where nothing was measured (a diverged run).
    ``failed`` names those ``x`` at which runs diverged or did not learn: a cross stands there, on
    the value if there is one and at the chart's upper edge if there is none.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    role: Literal["data", "published", "theory"] = "data"
    # Lines of the same arm share a colour throughout a page; this is the arm's name.
    arm: str = ""
    failed: tuple[float, ...] = ()
    # What the legend says after the label, such as how many runs are behind the curve.
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as data. ``text`` says in words what it shows, for those who cannot see it.

    ``kind`` says how it is drawn:

    * "line": values over an ``x`` that has an order (epoch, rate, batch size);
    * "dots": values of things without an order (arms, layers, sources), which is what most effects
      are. Each of ``rows`` gets a row of its own, in the order given, and a line's ``x`` are places
      in ``rows``, from 0. Values lie along the horizontal axis, with whiskers from ``low`` to
      ``high`` in place of a band. ``y_label`` and ``y_log`` still speak of the values, ``x_label``
      says what the rows are. Zero is marked where it lies within the values.

    >>> ours = Line("ours", (0, 1), (1.6, 0.2), (1.2, -0.1), (2.0, 0.5), arm="BN")
    >>> published = Line("ImageNet", (0,), (1.1,), role="published", arm="BN")
    >>> drawn = Chart("gain", "BN gains after convolutions", "where BN stands", "points gained",
    ...               (ours, published), "…", kind="dots", rows=("conv", "dense"))
    """

    key: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    text: str
    x_log: bool = False
    y_log: bool = False
    markers: bool = False
    kind: Literal["line", "dots"] = "line"
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as data; every cell is text or a number."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired effect: arm A minus arm B, seed by seed, with its interval.

    ``low`` and ``high`` bound the 95 % interval of the mean difference, by itself; positive favours
    the claim. ``smallest`` is the smallest effect that would matter; where there is a ``margin``,
    the claim holds if the effect is above minus the margin (non-inferiority). All of them are in
    ``unit``. ``shared`` is that part of the
    standard error which more seeds do not make smaller, ``freedom`` the degrees of freedom of the
    interval (None: one less than seeds). ``decides`` tells the effects
    that the verdict rests on from those shown for information. ``p`` is the one-sided probability
    of such an effect, or a larger one, where there is none; that of an effect that decides is
    corrected for the number of them (Holm), and so is its word. ``needed`` is how many seeds would
    probably decide what is undecided, None where nothing can be said.
    """

    question: str
    unit: str
    effect: float
    low: float
    high: float
    seeds: int
    word: Verdict
    smallest: float = 0.0
    p: float | None = None
    decides: bool = False
    needed: int | None = None
    shared: float = 0.0
    freedom: float | None = None
    margin: float = 0.0

    @property
    def decimals(self) -> int | None:
        """The decimals that the interval supports: one digit of its half width, two below 5.

        As many more, up to two, as it takes to see on which side of zero the interval ends. None
        where there is no width to tell by.

        >>> Comparison("", "points", 13.5752, 11.2751, 15.8752, 5, "supported").decimals
        1
        >>> Comparison("", "points", 0.58, -0.01, 1.17, 5, "undecided").decimals
        2
        """
        width = self.high - self.low
        half = abs(width) / 2 if math.isfinite(width) else abs(self.effect)
        if not math.isfinite(half) or half < 1e-5:
            return None
        exponent = math.floor(math.log10(half))
        places = max(0, min(6, (1 if half / 10**exponent < 4.95 else 0) - exponent))
        ends = [abs(end) for end in (self.low, self.high) if math.isfinite(end) and end]
        more = (places + extra for extra in range(3))
        return next((n for n in more if all(round(end, n) for end in ends)), places)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A published figure to print beside ours."""

    source: str
    figures: str
    url: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """All that the report says about one claim."""

    key: str  # "C1"
    title: str
    statement: str
    sources: tuple[Reference, ...]
    prediction: str
    word: Verdict
    sentence: str  # what we found, in one sentence with figures
    comparisons: tuple[Comparison, ...]
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    setup: tuple[tuple[str, str], ...]  # (what, value): data, model, optimizer, epochs, seeds
    data: str  # "Fashion-MNIST, 20,000 + 10,000 images (system package)"
    runs: int
    diverged: int
    seconds: float  # summed over its runs
    # Whether all runs are there and none plays a part that this version knows.
    stale: bool = False
    # Why our result may differ from the source's; empty where it does not, or nobody knows.
    differs: str = ""
    # The rows behind the charts, offered for download: one dict per run and measurement.
    records: tuple[dict[str, Any], ...] = ()
