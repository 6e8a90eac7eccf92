"""Parameters that train are not in the optimizer.

What it checks
    Whether the optimizer has parameters of the model at all, and whether it has every γ and β with
    requires_grad on.

Why it is bad
    What the optimizer does not have gets gradients and no step. It happens where layers are
    replaced or added after the optimizer was made: the optimizer goes on with tensors that no
    longer belong to the model, without a word.

Example
    optimizer = SGD(model.parameters(), lr=0.1); model = convert_sync_batchnorm(model)

Use instead
    Make the optimizer after the last change of the model. nk.convert and nk.freeze change layers
    in place, and all parameters stay the same objects.

When it is right
    Where only a part is to be trained; requires_grad_(False) for the rest then says so and saves
    time. That is a note. An AveragedModel has parameters of its own, which no optimizer trains.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import affine_parameters, averaging_wrapper, count

NEARLY_ALL = 0.9


def check(exam: Examination) -> Iterator[Finding]:
    """Find what no step will change."""
    if exam.optimizer is None or averaging_wrapper(exam.passed) is not None:
        return
    inside = {id(p) for group in exam.optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in exam.model.parameters() if p.requires_grad}
    strangers = len(inside - {id(p) for p in exam.model.parameters()})
    if trainable and not trainable & inside:
        yield Finding(
            "error",
            ("",),
            f"The optimizer has none of the {len(trainable):,} parameters that train; its "
            f"{len(inside):,} tensors are not the model's.",
            "make the optimizer from this model's parameters, after its last change",
            float(len(trainable)),
        )
        return
    affine = {
        one.name: {id(p) for p in affine_parameters(one) if p.requires_grad} for one in exam.norms
    }
    outside = {name: parameters for name, parameters in affine.items() if parameters - inside}
    if not outside:
        return
    others = trainable - {each for parameters in affine.values() for each in parameters}
    part = len(others & inside) / len(others) if others else 1.0
    yield Finding(
        "warning" if part >= NEARLY_ALL else "note",
        tuple(outside),
        f"γ and β of {count(outside)} train and are not in the optimizer, which has "
        f"{100 * part:.0f} % of the other parameters that train (a warning from "
        f"{100 * NEARLY_ALL:.0f} %), and {strangers:,} tensors that are not in the model.",
        "make the optimizer after the last change of the model, or requires_grad_(False)",
        float(len(outside)),
    )
