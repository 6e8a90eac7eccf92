"""Findings, which the report draws: plain values, no tensors, no storage.

The lab makes findings, the report draws them, and neither knows how the other works. Everything
here is frozen and holds only strings, numbers and tuples, so a finding can be written to JSON and
read by another program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

__all__ = [
    "TAIL",
    "TOPICS",
    "AtScale",
    "Chart",
    "Comparison",
    "Family",
    "Finding",
    "Line",
    "PartWord",
    "Reference",
    "ScaleWord",
    "Table",
    "Topic",
    "Verdict",
]

TAIL = 0.025
"""The error of each direction of a 95 % interval."""

ScaleWord = Literal["agrees", "too small to show here", "contradicts"]
"""Of a larger study, beside ours."""

PartWord = Literal["confirmed", "too small to matter", "opposite", "open"]
"""Of one effect; :func:`normkit.lab.verdicts.paired_test` has the rule."""

Verdict = Literal["confirmed", "partly", "refuted", "open"]
"""Of a claim; :func:`normkit.lab.verdicts.decide` has the rule."""

Topic = Literal["training", "statistics", "small batches", "domains", "cost", "architecture"]
"""Subject of a claim, by which readers look for it."""

TOPICS: tuple[Topic, ...] = get_args(Topic)


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

    Attributes:
        question: what was asked.
        unit: of all that follows.
        effect: the plain difference; positive favours the claim.
        low, high: the 95 % interval of the mean difference.
        seeds: how many differences there are.
        word: the part's verdict.
        smallest: the smallest effect that would matter.
        margin: where there is one, the claim is that less than this is lost (non-inferiority). It
            is drawn, and never added to the effect.
        p: the one-sided probability of such an effect, or a larger one, where there is none.
        decides: True for a part of the claim, False for an effect shown for information.
        needed: the 80 % range of how many seeds would decide an open part; a second member of None
            is more than can be told, and None alone that nothing can be said.
        survives: the part stays confirmed when all deciding parts of the page are corrected
            together (Holm).
        shared: that part of the standard error which more seeds do not make smaller.
        images: the number of test images whose choice the interval allows for; 0: it does not.
        freedom: the degrees of freedom of the interval (None: one less than seeds).
    """

    question: str
    unit: str
    effect: float
    low: float
    high: float
    seeds: int
    word: PartWord
    smallest: float = 0.0
    p: float | None = None
    decides: bool = False
    needed: tuple[int, int | None] | None = None
    shared: float = 0.0
    freedom: float | None = None
    margin: float = 0.0
    survives: bool = False
    images: int = 0

    @property
    def decimals(self) -> int | None:
        """Decimals that the interval supports: one digit of its half width, two below 5.

        As many more, up to two, as it takes to see on which side of zero the interval ends. None
        where there is no width to tell by.

        >>> Comparison("", "points", 13.5752, 11.2751, 15.8752, 5, "confirmed").decimals
        1
        >>> Comparison("", "points", 0.58, -0.01, 1.17, 5, "open").decimals
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
class AtScale:
    """Results in the literature on a claim where networks, data and training were larger.

    ``word`` is fixed with the claim, before its runs: does it agree with the claim, or contradict
    it, or show an effect too small for the networks and seeds here?
    """

    word: ScaleWord
    figures: str
    source: str
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
    # How many of its deciding parts are confirmed, and how many it has.
    confirmed: int = 0
    parts: int = 0
    # Network, data, steps and figures, here and in the source.
    here: Table | None = None
    at_scale: tuple[AtScale, ...] = ()
    # When the claim holds and when not, by our own arms; and what to do. A sentence each.
    holds: str = ""
    practice: str = ""
    topic: Topic | Literal[""] = ""

    @property
    def complete(self) -> bool:
        """True if all planned runs are there."""
        return self.runs >= len(self.records)

    @property
    def verdict(self) -> str:
        """Word of the claim, or how many of several parts are confirmed."""
        if self.parts > 1 and self.word in ("confirmed", "partly"):
            whole = self.word == "confirmed"
            return f"{'' if whole else 'partly, '}{self.confirmed} of {self.parts} parts confirmed"
        return self.word


@dataclasses.dataclass(frozen=True)
class Family:
    """Deciding parts of several findings, taken together.

    Attributes:
        parts: how many were judged, but for those that are no matter of chance.
        confirmed: how many are confirmed, each by its own interval.
        survive: how many are still confirmed when all are corrected together (Holm).
    """

    parts: int
    confirmed: int
    survive: int

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Family:
        """Count the deciding parts of complete findings."""
        parts = [
            part for finding in findings if finding.complete
            for part in finding.comparisons if part.decides and part.p is not None
        ]  # fmt: skip
        confirmed = sum(part.word == "confirmed" for part in parts)
        return cls(len(parts), confirmed, sum(part.survives for part in parts))

    @property
    def expected(self) -> float:
        """Number of confirmed parts that chance alone would give if no effect existed."""
        return self.parts * TAIL

    @property
    def chance(self) -> float:
        """Probability of at least one of them, for independent parts.

        >>> round(Family(57, 38, 30).chance, 2)
        0.76
        """
        return 1 - (1 - TAIL) ** self.parts
