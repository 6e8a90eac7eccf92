"""Several places share one layer.

What it checks
    Whether one normalization layer stands in several places of the model, or one pass calls it
    several times. A second name for a part that is called once does not count.

Why it is bad
    Running statistics become a mixture of all places. In training mode each place normalizes with
    its own batch, in evaluation all of them with the mixture, which fits none.

Example
    norm = nn.BatchNorm2d(64); nn.Sequential(conv1, norm, nn.ReLU(), conv2, norm)

Use instead
    A layer for each place; convolutions may be shared. With batches, NK213 measures what it costs.

When it is right
    For layers without running statistics, if γ and β shall be shared; for inputs of one kind, as in
    siamese networks, whose calls all see alike values.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import count


def check(exam: Examination) -> Iterator[Finding]:
    """Find shared layers."""
    slots = _slots(exam.model)
    places: dict[str, list[Norm]] = {"warning": [], "note": []}
    for one in exam.norms:
        # Where calls are not known, attributes that hold the very layer are counted.
        known = exam.flow.calls
        calls = known.get(one.name, 0) if known else slots[id(one.layer)]
        if calls > 1:
            several = one.stats is not None and not one.frozen and len(one.places) > 1
            places["warning" if several else "note"].append(one)
    if norms := places["warning"]:
        yield Finding(
            "warning",
            tuple(name for one in norms for name in one.places),
            f"{sum(len(one.places) for one in norms)} places share {count(norms)} with running "
            "statistics: evaluation normalizes all of them with a mixture that fits none.",
            "make a layer for each place, then train again",
            float(max(len(one.places) for one in norms)),
        )
    if norms := places["note"]:
        yield Finding(
            "note",
            tuple(name for one in norms for name in one.places),
            f"One pass calls {count(norms)} several times; γ and β, and statistics if there are "
            "any, are shared between the calls.",
            "check that it is meant; with training batches NK213 measures what it costs",
            float(len(norms)),
        )


def _slots(model: nn.Module) -> dict[int, int]:
    """Count, by identity, in how many attributes of modules each module stands."""
    slots: dict[int, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            slots[id(child)] = slots.get(id(child), 0) + 1
    slots.setdefault(id(model), 1)
    return slots
