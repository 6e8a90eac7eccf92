"""Layers of one model are partly frozen in training mode.

What it checks
    Whether, while the model trains, the running statistics of some layers stay and those of others
    move.

Why it is bad
    It need not be. But it is often an accident: model.train() in the loop undoes layer.eval() for
    all layers that were not frozen, a list of blocks missed some, or a new head brought layers of
    its own.

Example
    model.train(); model.layer1.eval()

Use instead
    nk.freeze(part) for the parts that shall stay, which model.train() leaves as they are.

When it is right
    Where a frozen backbone carries a new head.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count, still_in_training


def check(exam: Examination) -> Iterator[Finding]:
    """Find the layers that stay where others move."""
    still = still_in_training(exam)
    norms = [one for one in exam.norms if one.stats is not None]
    unmoving = [one for one in norms if id(one.layer) in still]
    if unmoving and len(unmoving) < len(norms):
        yield Finding(
            "note",
            tuple(one.name for one in unmoving),
            f"The running statistics of {count(unmoving)} stay in training mode, those of "
            f"{len(norms) - len(unmoving):,} others move.",
            "check that it is meant; nk.freeze(part) holds a part, model.train() or not",
            len(unmoving) / len(norms),
        )
