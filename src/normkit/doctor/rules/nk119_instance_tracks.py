"""InstanceNorm with running statistics is another function in evaluation.

What it checks
    Whether an instance normalization has track_running_stats on.

Why it is bad
    In training it normalizes each sample by itself; in evaluation it takes the average over
    samples, which is batch normalization. What the weights were trained for, that each sample
    loses its own contrast, does not happen any more.

Example
    nn.InstanceNorm2d(64, track_running_stats=True)

Use instead
    nn.InstanceNorm2d(64). finding.mend() does it to a trained model, and needs no training.

When it is right
    Where samples are so small that an average is better in evaluation, and that was tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count, never_moved
from normkit.doctor.treatments import set_attributes

OFF = {
    "track_running_stats": False,
    "running_mean": None,
    "running_var": None,
    "num_batches_tracked": None,
}


def check(exam: Examination) -> Iterator[Finding]:
    """Find instance normalizations that do not normalize instances in evaluation."""
    norms = [
        one for one in exam.norms
        if isinstance(one.layer, _InstanceNorm) and one.layer.track_running_stats
        and one.stats is not None and not one.frozen
    ]  # fmt: skip
    if norms:
        ran = not all(never_moved(one) for one in norms)
        yield Finding(
            "warning" if ran else "note",
            tuple(one.name for one in norms),
            f"InstanceNorm keeps running statistics in {count(norms)}: training normalizes each "
            "sample by itself, evaluation by the average of samples.",
            "nn.InstanceNorm2d(channels), without track_running_stats",
            float(len(norms)),
            set_attributes("instance statistics", norms, OFF, trial=True),
        )
