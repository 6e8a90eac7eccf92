"""Evaluation inputs have another scale than training's.

What it checks
    Whether the mean of the evaluation inputs is half a deviation from that of the training inputs,
    or their deviation half as large again or two thirds, in the median channel.

Why it is bad
    The network, and the running statistics of its first layers, know training's scale only. Usually
    one of the two pipelines standardizes with other numbers, or not at all; or the images are
    taken in other light.

Example
    Training images with transforms.Normalize(mean, deviation), evaluation images without.

Use instead
    One function that prepares both; where the evaluation data is another domain,
    nk.recalibrate(model, evaluation), on inputs without labels.

When it is right
    Where augmentation alone makes the difference, such as strong changes of contrast in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding, Treatment
from normkit.doctor.survey import Inputs
from normkit.doctor.treatments import RECALIBRATE_ON_EVALUATION, rescaling
from normkit.doctor.trials import gain_of

DEVIATIONS, FACTOR = 0.5, 1.5


def check(exam: Examination) -> Iterator[Finding]:
    """Find evaluation inputs on another scale."""
    if exam.training is None or exam.evaluation is None:
        return
    train, test = exam.training.survey.inputs, exam.evaluation.survey.inputs
    if train is None or test is None or train.mean.shape != test.mean.shape:
        return
    varies = train.deviation > 0
    if not bool(varies.any()):
        return
    scale = train.deviation.clamp_min(1e-12)
    shift = float(((test.mean - train.mean).abs() / scale)[varies].median())
    factor = float((test.deviation / scale)[varies].median())
    if not math.isfinite(shift * factor):  # NK209 speaks of it
        return
    if shift <= DEVIATIONS and 1 / FACTOR <= factor <= FACTOR:
        return
    a, b = (
        f"mean {float(x.mean.mean()):.2f}, deviation {float(x.deviation.mean()):.2f}"
        for x in (train, test)
    )
    yield Finding(
        "warning",
        (),
        f"Training inputs have {a}; evaluation inputs have {b}: {shift:.2f} deviations and a "
        f"factor of {factor:.2f} apart (thresholds {DEVIATIONS} and {FACTOR}).",
        "prepare both alike; for another domain nk.recalibrate(model, evaluation)",
        max(shift / DEVIATIONS, factor / FACTOR, 1 / max(factor, 1e-12) / FACTOR),
        exam.recalibrate_on_evaluation() if _statistics_help(exam) else None,
        trial=_on_training_scale(exam, train, test),
    )


def _statistics_help(exam: Examination) -> bool:
    """Return True if statistics of the evaluation batches are measured to help."""
    gain = gain_of(exam, RECALIBRATE_ON_EVALUATION)
    return gain is not None and gain.helps


def _on_training_scale(exam: Examination, train: Inputs, test: Inputs) -> Treatment | None:
    """Give the evaluation inputs training's mean and deviation, if all channels are known."""
    shapes = [exam.flow.shapes.get(name, ()) for name in exam.flow.entries[:1]]
    if [shape[1:2] for shape in shapes] != [(len(train.mean),)]:
        return None
    scale = train.deviation / test.deviation.clamp_min(1e-12)
    return rescaling(exam.model, scale, train.mean - scale * test.mean)
