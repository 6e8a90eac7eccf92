"""Flag track_running_stats contradicts the buffers.

What it checks
    Whether track_running_stats is off while running statistics are there, or on while there are
    none.

Why it is bad
    Set after the layer was made, the flag does not do what it does in the constructor. Batch
    normalization, off with buffers: training no longer moves them, evaluation still uses them. On
    without buffers: evaluation uses the statistics of each batch. Instance normalization, off with
    buffers: it moves them in evaluation too, and never uses them; on without: evaluation raises.

Example
    layer.track_running_stats = False      # meant to use batch statistics

Use instead
    with nk.batch_statistics(model): ...   or the flag in the constructor.

When it is right
    Off with buffers, for a while, to pass batches that shall not move the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import affine_moved, count, never_moved, suits_training
from normkit.doctor.treatments import set_attributes, together


def _layers(exam: Examination, flag: bool) -> list[Norm]:
    return [
        one for one in exam.norms
        if isinstance(one.layer, _NormBase) and not one.frozen
        and one.layer.track_running_stats is flag
        and (one.layer.running_mean is None) is flag
    ]  # fmt: skip


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose two modes are not what the flag says."""
    if norms := _layers(exam, False):
        batch = [one for one in norms if isinstance(one.layer, _BatchNorm)]
        wrong = any(never_moved(one) and affine_moved(one) for one in batch)
        mend = set_attributes("tracking", batch, {"track_running_stats": True}) if batch else None
        yield Finding(
            "error" if wrong and suits_training(exam)[0] else "warning" if batch else "note",
            tuple(one.name for one in norms),
            f"track_running_stats is False in {count(norms)} with running statistics: "
            + ("training does not move them, and evaluation uses them." if batch else
               "even evaluation moves them, and nothing uses them."),
            "layer.track_running_stats = True, then nk.recalibrate(model, train)",
            float(len(norms)),
            together(mend, exam.recalibrate()) if mend is not None else None,
        )  # fmt: skip
    if norms := _layers(exam, True):
        batch = [one for one in norms if isinstance(one.layer, _BatchNorm)]
        yield Finding(
            "warning" if len(batch) == len(norms) else "error",
            tuple(one.name for one in norms),
            f"track_running_stats is True in {count(norms)} without running statistics: "
            + ("evaluation normalizes with each batch, so a sample's result depends on the others."
               if batch else "evaluation raises an error."),
            "make the layers anew with track_running_stats=True, then nk.recalibrate(model, train)",
            float(len(norms)),
        )  # fmt: skip
