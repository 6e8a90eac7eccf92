"""Channels have a dead γ.

What it checks
    In how many channels of a layer |γ| is exactly 0, or below a thousandth of its large ones (the
    90 % quantile), while other channels of the layer live. Subclasses with a forward of their own,
    which may multiply by 1 + γ, do not count.

Why it is bad
    A dead channel sends out β, whatever comes in: it costs time and memory and carries nothing.
    Weight decay on γ, rates that are too high and a penalty on γ make them, and they do not
    recover, as no gradient reaches the weights before them.

Example
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3), for long.

Use instead
    No weight decay on γ and β (NK122). A trained network may be pruned of these channels.

When it is right
    After a penalty on γ that is to prune channels. Layers that are 0 throughout, as the last ones
    of residual blocks are when they are made, do not count.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parameter import is_lazy

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import is_known, share

SMALL, MANY = 1e-3, 0.25


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that lost some of their channels."""
    shares, dead, total = {}, 0, 0
    for one in exam.norms:
        gamma = one.weight
        if gamma is None or is_lazy(gamma) or gamma.numel() < 2 or not is_known(one):
            continue
        size = gamma.detach().cpu().flatten().abs().double()
        large = size.quantile(0.9) if size.numel() < 1_000_000 else size.max()
        gone = (size == 0) | (size < SMALL * large)
        if bool(gone.any()) and not bool(gone.all()):
            shares[one.name] = share(gone)
            dead, total = dead + int(gone.sum()), total + gone.numel()
    if not shares:
        return
    worst = max(shares, key=lambda name: shares[name])
    yield Finding(
        "warning" if shares[worst] > MANY else "note",
        tuple(shares),
        f"γ is 0, or below {SMALL:g} of the layer's large ones, in {dead:,} of {total:,} channels "
        f"of these layers; most in {worst}, {100 * shares[worst]:.0f} % (a warning above "
        f"{100 * MANY:.0f} %). Such a channel sends out β alone.",
        "no weight decay on γ and β (NK122); prune the channels, or train again",
        shares[worst],
    )
