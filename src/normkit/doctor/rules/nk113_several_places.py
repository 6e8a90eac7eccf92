"""Several places share one layer.

What it checks
    Whether one normalization layer stands in several places of the model, or one pass calls it
    several times. A second name for a part that is called once does not count. It is a note where
    training batches show calls with like inputs, and where calls are not known.

Why it is bad
    Running statistics become a mixture of all places. In training mode each place normalizes with
    its own batch, in evaluation all of them with the mixture, which fits none where they differ.

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
    slots, known = _slots(exam.model), exam.flow.calls
    places: dict[str, list[Norm]] = {"wrong": [], "called": [], "named": []}
    for one in exam.norms:
        if not known and slots[id(one.layer)] > 1:
            places["named"].append(one)
        elif known.get(one.name, 0) > 1:
            several = one.stats is not None and not one.frozen and len(one.places) > 1
            wrong = several and not _fits_all_calls(exam, one)
            places["wrong" if wrong else "called"].append(one)
    if norms := places["wrong"]:
        yield Finding(
            "warning",
            tuple(name for one in norms for name in one.places),
            f"{sum(len(one.places) for one in norms)} places share {count(norms)} with running "
            "statistics: evaluation normalizes all of them with a mixture, which fits none where "
            "they differ.",
            "make a layer for each place, then train again",
            float(max(len(one.places) for one in norms)),
        )
    if norms := places["called"]:
        yield Finding(
            "note",
            tuple(name for one in norms for name in one.places),
            f"One pass calls {count(norms)} several times; γ and β, and statistics if there are "
            "any, are shared between the calls.",
            "check that it is meant; with training batches NK213 measures what it costs",
            float(len(norms)),
        )
    if norms := places["named"]:
        yield Finding(
            "note",
            tuple(name for one in norms for name in one.places),
            f"{count(norms)} in several attributes: places that share it, or names of one place. "
            "The model cannot be traced, so its calls are not known.",
            "pass training batches, which show how often a pass calls it",
            float(len(norms)),
        )


def _fits_all_calls(exam: Examination, one: Norm) -> bool:
    """Return True if training batches showed that the calls have like inputs."""
    compared = exam.training.consistency if exam.training is not None else None
    if compared is None:
        return False
    measured = {each for each in compared.calls if exam.norm(each) == one}
    return bool(measured) and not any(each.name in measured for each in compared.shared)


def _slots(model: nn.Module) -> dict[int, int]:
    """Count, by identity, in how many attributes of modules each module stands."""
    slots: dict[int, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            slots[id(child)] = slots.get(id(child), 0) + 1
    slots.setdefault(id(model), 1)
    return slots
