"""Running statistics never moved.

What it checks
    Whether every running mean of a layer is exactly 0 and every variance exactly 1, as it is made,
    though its β (or γ) has been trained. The count of batches is not asked: it is 0 in networks
    converted from other frameworks, which are well.

    The same is seen where the layers were in evaluation mode throughout training. With labels both
    are told apart, by the score or the loss with the statistics of training batches: an error where
    they serve the weights better, a warning where that is not known.

Why it is bad
    In evaluation mode the layer then normalizes nothing, while its weights were trained on
    normalized values. Accuracy is often that of guessing. Weights trained in evaluation mode fit:
    evaluation is right, but the layers have never normalized, and training got less far for it.

Example
    A checkpoint without buffers (strict=False), weights of another layout loaded without their
    statistics, reset_running_stats() after training, momentum 0.

Use instead
    nk.recalibrate(model, train), which takes the statistics from training batches; then save. Not
    after training in evaluation mode: there, train again, in training mode.

When it is right
    In a model that has not been trained, and in weights that statistics were folded into. Where
    nothing shows training, as in layers without γ and β, it is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import (
    affine_moved,
    count,
    drawn_at_random,
    never_moved,
    suits_training,
)
from normkit.nn.freezing import is_constant

YIELDS_TO = ("NK103", "NK108")


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose statistics are as they were made."""
    # A constant layer may have its statistics folded into γ and β on purpose.
    initial = [one for one in exam.norms if never_moved(one) and not is_constant(one.layer)]
    drawn = bool(initial) and drawn_at_random(exam.norms)
    trained = [one for one in initial if affine_moved(one) and not drawn]
    fresh = [one for one in initial if one not in trained]
    if trained:
        yield _of_trained(exam, trained)
    if fresh:
        bare = all(affine_moved(one) is None for one in fresh)
        yield Finding(
            "note",
            tuple(one.name for one in fresh),
            f"All running means are exactly 0 and all variances exactly 1 in {count(fresh)}, "
            + ("without a γ or β that would show whether it was trained."
               if bare else "whose γ and β are as made, too: not trained yet."),
            "train it, in training mode; for evaluation before that, nk.recalibrate(model, train)",
            float(len(fresh)),
            exam.recalibrate(),
        )  # fmt: skip


def _of_trained(exam: Examination, norms: list[Norm]) -> Finding:
    measured = (
        f"All running means are exactly 0 and all variances exactly 1 in {count(norms)}, though "
        "γ and β were trained"
    )
    suits, figures = suits_training(exam)
    if suits is False:
        return Finding(
            "warning",
            tuple(one.name for one in norms),
            f"{measured}. The weights fit that: with statistics of training batches the result is "
            f"worse ({figures}). They were trained in evaluation mode, without normalization.",
            "leave the statistics as they are; train again, after model.train()",
            float(len(norms)),
        )
    return Finding(
        "error" if suits else "warning",
        tuple(one.name for one in norms),
        measured
        + (": no batch ever moved them, and in evaluation these layers normalize nothing."
           if suits else
           ". If that was in training mode, no batch ever moved them, and in evaluation these "
           "layers normalize nothing. "
           + (f"The labels do not tell ({figures})." if figures else
              "Labelled batches would tell.")),
        "nk.recalibrate(model, train)",
        float(len(norms)),
        exam.recalibrate(),
    )  # fmt: skip
