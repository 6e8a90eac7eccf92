"""Running variance is below ε.

What it checks
    In how many channels the running variance is smaller than the layer's ε. Layers whose
    statistics never moved do not count.

Why it is bad
    The input of such a channel is all but constant: its filter is dead, or the values are so small
    that ε, and not the variance, sets the scale. A small shift of the input, as another device or
    type brings, is then amplified by up to 1/√ε, 316 at the default.

Example
    EfficientNet-Lite0 as published: 639 of 21,008 channels.

Use instead
    If there are many: better initial weights, a lower rate, no weight decay on γ before this layer;
    or inputs of unit scale. A trained network may be pruned of these channels.

When it is right
    In a share of a few per cent, as in most trained networks with ReLU. That is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import eps_of, never_moved, share, values_of

YIELDS_TO = ("NK109",)
MOST = 0.5


def check(exam: Examination) -> Iterator[Finding]:
    """Find channels whose scale is set by ε."""
    shares, low, zero, total = {}, 0, 0, 0
    for one in exam.norms:
        values, eps = values_of(one), eps_of(one)
        if values is None or never_moved(one):
            continue
        total += values[1].numel()
        below = (values[1] >= 0) & (values[1] < (eps or 0))
        if bool(below.any()):
            shares[one.name] = share(below)
            low, zero = low + int(below.sum()), zero + int((values[1] == 0).sum())
    if not shares:
        return
    worst = max(shares, key=lambda name: shares[name])
    yield Finding(
        "warning" if shares[worst] > MOST else "note",
        tuple(shares),
        f"The running variance is below ε in {low:,} of {total:,} channels, exactly 0 in {zero:,}; "
        f"most in {worst}, {100 * shares[worst]:.0f} % (a warning above {100 * MOST:.0f} %). What "
        "comes in there is all but constant, and ε sets its scale.",
        "look at what feeds these channels; they may be pruned",
        low / total,
    )
