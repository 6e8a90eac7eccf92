"""Channels of a layer's input are constant.

What it checks
    In which share of a layer's channels the training batches have no variance; a note from a
    quarter of the channels.

Why it is bad
    Such a channel carries nothing: the layer puts out β. It is usually a convolution whose weights
    have died, often behind a ReLU whose inputs are all negative, after a step that was too large.

Example
    A learning rate without warm-up; pruning that set weights to zero and kept the channels.

Use instead
    A smaller rate at the start; or remove the channels.

When it is right
    After pruning, until the channels are removed.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

SHARE = 0.25
CONSTANT = 1e-12
"""Variance, as a share of the squared mean or by itself, that counts as none."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers of whose channels many are constant."""
    training = exam.training
    if training is None or training.measured is None:
        return
    shares = {}
    for name, one in training.measured.layers.items():
        constant = one.variance <= CONSTANT * one.mean.square().clamp_min(1.0)
        if (share := float(constant.double().mean())) >= SHARE:
            shares[name] = share
    if not shares:
        return
    worst = max(shares.values())
    yield Finding(
        "note",
        tuple(shares),
        f"In {100 * worst:.0f} % of the channels the input is constant (threshold "
        f"{100 * SHARE:.0f} %): they carry nothing.",
        "look at the weights before the layer; remove channels that are dead",
        worst,
    )
