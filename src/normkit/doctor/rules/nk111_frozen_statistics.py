"""Statistics are frozen while γ and β train.

What it checks
    Whether a layer's running statistics stay the same in training mode, by nk.freeze, its class,
    the model's own train(), or evaluation mode within a model that trains, while its γ or β has
    requires_grad on.

Why it is bad
    It need not be. But γ and β then train against statistics of former weights: as the weights
    before the layer move, its output is no longer normalized, and rates that were fine with batch
    statistics may diverge.

Example
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.eval()

Use instead
    nk.freeze(model), which freezes γ and β as well; or train statistics too.

When it is right
    In fine-tuning with low rates, or in the last epochs, where it is a usual recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import affine_parameters, count, still_in_training


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose statistics stay while γ and β move."""
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if id(one.layer) in still and any(p.requires_grad for p in affine_parameters(one))
    ]  # fmt: skip
    if norms:
        yield Finding(
            "note",
            tuple(one.name for one in norms),
            f"The running statistics of {count(norms)} stay in training mode, while γ or β trains.",
            "nk.freeze(model) freezes γ and β as well; nk.unfreeze(model) lets all of it train",
            float(len(norms)),
        )
