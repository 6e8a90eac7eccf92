"""Running statistics never moved.

What it checks
    Whether every running mean of a layer is exactly 0 and every variance exactly 1, as it is made,
    though its β (or γ) has been trained. The count of batches is not asked: it is 0 in networks
    converted from other frameworks, which are well.

Why it is bad
    In evaluation mode the layer then normalizes nothing, while its weights were trained on
    normalized values. Accuracy is often that of guessing.

Example
    model.eval() called before training, a checkpoint without buffers (strict=False), weights of
    another layout loaded without their statistics, momentum 0.

Use instead
    nk.recalibrate(model, train), which takes the statistics from training batches; then save.

When it is right
    In a model that has not been trained. There it is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import affine_moved, count, never_moved
from normkit.nn.freezing import is_constant

YIELDS_TO = ("NK103", "NK108")


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose statistics are as they were made."""
    # A constant layer may have its statistics folded into γ and β on purpose.
    initial = [one for one in exam.norms if never_moved(one) and not is_constant(one.layer)]
    trained: list[Norm] = []
    fresh: list[Norm] = []
    for one in initial:
        changed = affine_moved(one)
        (trained if changed or (changed is None and exam.trained) else fresh).append(one)
    if trained:
        yield Finding(
            "error",
            tuple(one.name for one in trained),
            f"All running means are exactly 0 and all variances exactly 1 in {count(trained)}, "
            "though γ and β were trained: no batch ever moved them, and in evaluation these layers "
            "normalize nothing.",
            "nk.recalibrate(model, train)",
            float(len(trained)),
            exam.recalibrate(),
        )
    if fresh:
        yield Finding(
            "note",
            tuple(one.name for one in fresh),
            f"All running means are exactly 0 and all variances exactly 1 in {count(fresh)}, whose "
            "γ and β are as made, too: not trained yet.",
            "train it, in training mode; for evaluation before that, nk.recalibrate(model, train)",
            float(len(fresh)),
            exam.recalibrate(),
        )
