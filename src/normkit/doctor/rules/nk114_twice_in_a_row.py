"""Normalizing twice in a row.

What it checks
    Whether a normalization layer's input is the output of another one, with nothing between.

Why it is bad
    The second takes mean and variance out of values that have hardly any left: at most γ and β of
    the first are undone. It costs the time of a layer, and its statistics and γ are one more thing
    to go wrong. Often it is left over from a block that ends with a layer and one that begins so.

Example
    nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(64))

Use instead
    One of the two.

When it is right
    Where the two pool over different axes on purpose, or what the first sends out goes elsewhere
    too, as in RepGhost: a note. Without running statistics it is one as well: torch.nn.Transformer
    itself ends its encoder that way.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that normalize what is normalized already."""
    by_name = {one.name: one for one in exam.norms}
    pairs: dict[bool, list[tuple[Norm, Norm]]] = {True: [], False: []}
    for one in exam.norms:
        chain = []
        for name in exam.flow.before(one.name):
            chain.append(name)
            if not isinstance(exam.model.get_submodule(name), nn.Identity):
                break
        if chain and (first := by_name.get(chain[-1])) is not None:
            both = first.stats is not None and one.stats is not None
            pairs[both and _feeds_nothing_else(exam, chain, one.name)].append((first, one))
    for both, rows in pairs.items():
        if rows:
            first, second = rows[0]
            yield Finding(
                "warning" if both else "note",
                tuple(one.name for _, one in rows),
                f"The output of {first.name} ({type(first.layer).__name__}) goes straight into "
                f"{second.name} ({type(second.layer).__name__})"
                + (f", and so in {len(rows) - 1} more pairs." if len(rows) > 1 else "."),
                "leave one of the two out, and train again",
                float(len(rows)),
            )


def _feeds_nothing_else(exam: Examination, chain: list[str], name: str) -> bool:
    """Return True if what the modules of a chain make goes into the next one only, surely."""
    if exam.flow.complete:
        return all(exam.flow.users.get(each) == 1 for each in chain)
    parents = {each.rpartition(".")[0] for each in (*chain, name)}
    parent = exam.model.get_submodule(parents.pop())
    return not parents and type(parent).forward is nn.Sequential.forward
