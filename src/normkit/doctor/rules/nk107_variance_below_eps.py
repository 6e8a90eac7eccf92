"""Running variance is below ε.

What it checks
    In how many channels the running variance is smaller than the layer's ε, and in how many below
    a hundredth of it: a warning where the latter are most of a layer. Layers whose statistics never
    moved do not count.

Why it is bad
    Such a channel comes out at √(σ²/(σ² + ε)) of unit scale: 0.7 where the two are equal, below 0.1
    under a hundredth of ε. There it is all but constant: its filter is dead, or its values are
    tiny. A small shift of the input, as another device or type brings, is amplified by up to 1/√ε,
    316 at the default.

Example
    EfficientNet-Lite0 as published: 639 of 21,008 channels.

Use instead
    If there are many: better initial weights, a lower rate, no weight decay on γ before this layer;
    or inputs of unit scale. A trained network may be pruned of channels that are all but constant.

When it is right
    In a share of a few per cent, as in most trained networks with ReLU. That is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import eps_of, never_moved, share, values_of
from normkit.handle import place_name

YIELDS_TO = ("NK109",)
MOST, FLAT = 0.5, 0.01
"""Of a layer's channels; of ε, below which a channel is all but constant."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find channels whose scale is set by ε."""
    below: dict[str, Tensor] = {}
    flat: dict[str, float] = {}
    total = 0
    for one in exam.norms:
        values, eps = values_of(one), eps_of(one)
        if values is None or never_moved(one):
            continue
        total += values[1].numel()
        low = (values[1] >= 0) & (values[1] < (eps or 0))
        if bool(low.any()):
            below[one.name] = values[1][low] / (eps or 1)
            flat[one.name] = share(low & (values[1] < FLAT * (eps or 0)))
    if not below:
        return
    ratios = torch.cat(list(below.values()))
    constant, others = ratios[ratios < FLAT], ratios[ratios >= FLAT]
    says = f"The running variance is below ε in {len(ratios):,} of {total:,} channels."
    worst = max(flat, key=lambda name: flat[name])
    if len(constant):
        says += (
            f" In {len(constant):,} it is below ε/{1 / FLAT:.0f}, exactly 0 in "
            f"{int((constant == 0).sum()):,}: what comes in there is all but constant; most in "
            f"{place_name(worst)}, {100 * flat[worst]:.0f} % (a warning above {100 * MOST:.0f} %)."
        )
    if len(others):
        least = float((others / (others + 1)).sqrt().min())
        says += f" {len(others):,} come out at {least:.2f} of unit scale or more, instead of 1."
    yield Finding(
        "warning" if flat[worst] > MOST else "note",
        tuple(below),
        says,
        "look at what feeds these channels"
        + ("; those all but constant may be pruned" if len(constant) else ""),
        len(ratios) / total,
    )
