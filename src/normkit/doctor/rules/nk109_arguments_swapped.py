"""Arguments ε and momentum were passed in the wrong order.

What it checks
    Whether the ε of a layer with running statistics is 0.01 or more. If its momentum is 0.001 or
    less as well, the two were swapped.

Why it is bad
    nn.BatchNorm2d takes (num_features, eps, momentum): a second number meant as the momentum
    becomes ε. The layer then divides by √(σ² + 0.8), which leaves channels with little variance
    far from normalized, and with a momentum of 1e-5 the running statistics never get anywhere.

Example
    nn.BatchNorm2d(128, 0.8)       nn.BatchNorm2d(128, 0.1, 1e-5)

Use instead
    nn.BatchNorm2d(128, eps=1e-5, momentum=0.1). Trained weights fit the ε that they were trained
    with, so it stays there, and is found again; momentum and statistics can be mended.

When it is right
    Where so large an ε is meant, to normalize weak channels less.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import eps_of
from normkit.doctor.treatments import MOMENTUM, set_attributes, together

LARGE, SMALL = 1e-2, 1e-3
EPS = 1e-5
KEPT = 0.5
"""A number above it was meant as the share kept, as Keras takes it."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose ε looks like a momentum."""
    large = {
        one.name: one for one in exam.norms if one.stats is not None and (eps_of(one) or 0) >= LARGE
    }
    swapped = [o for o in large.values() if o.momentum is not None and 0 < o.momentum <= SMALL]
    if swapped:
        # Trained weights are fitted to the ε that they were trained with.
        values = {"momentum": lambda layer: _meant(layer.eps), "eps": lambda layer: layer.momentum}
        if exam.trained:
            del values["eps"]
        eps = eps_of(swapped[0]) or 0.0
        least, meant = swapped[0].momentum, _meant(eps)
        yield Finding(
            "warning",
            tuple(one.name for one in swapped),
            f"ε is {eps:g} and the momentum {least:g} (thresholds {LARGE:g} and {SMALL:g}): passed "
            "in the wrong order; the running statistics all but stand still.",
            f"eps={least:g}, momentum={meant:g}, by name" if not exam.trained else
            f"momentum={meant:g}, then nk.recalibrate(model, train); ε stays, as weights fit it",
            eps,
            together(set_attributes("momentum", swapped, values), exam.recalibrate()),
        )  # fmt: skip
    if others := [one for one in large.values() if one not in swapped]:
        eps = eps_of(others[0]) or 0.0
        yield Finding(
            "warning",
            tuple(one.name for one in others),
            f"ε is {eps:g} (threshold {LARGE:g}): a momentum passed second, which is the place of "
            "ε. Channels with a variance below it are not normalized.",
            f"nn.BatchNorm2d(channels, momentum={_meant(eps):g}), then train again"
            + ("; these weights fit their ε" if exam.trained else ""),
            eps,
            None if exam.trained else set_attributes("eps", others, {"eps": EPS}),
        )


def _meant(eps: float) -> float:
    """Return the momentum that a number in the place of ε was meant as."""
    replaced = eps if eps < KEPT else round(1 - eps, 6)
    return replaced if 0 < replaced < KEPT else MOMENTUM
