"""Dropout before a layer with running statistics.

What it checks
    Whether dropout acts before a layer with running statistics, directly or through convolution,
    linear, activation and pooling layers, with no other normalization between.

Why it is bad
    Dropout keeps the mean and raises the variance in training, and does nothing in evaluation. The
    running variance is that of training, so evaluation divides by too much: the variance shift of
    Li et al. 2018, arXiv 1801.05134, which costs them up to several points.

Example
    nn.Sequential(nn.Dropout(0.5), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))

Use instead
    Dropout after the last normalization. For a trained model, with batches, NK210 measures it.

When it is right
    With a small probability, or in wide layers, whose sums average it out.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import activation, pooling
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

PASSED = (_ConvNd, nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten)
MODULES = (activation.__name__, pooling.__name__)


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose running variance is that of dropped values."""
    pairs = {}
    for one in exam.norms:
        if one.stats is not None and (dropout := _dropout(exam, one.name)) is not None:
            pairs[one.name] = dropout
    if pairs:
        (name, (source, p)), *others = pairs.items()
        more = f", and so before {len(others)} more layers" if others else ""
        yield Finding(
            "note",
            tuple(pairs),
            f"{source}, a dropout of {p:g}, acts before {name}{more}: the running variance is that "
            "of training, where values are dropped, and is too large in evaluation.",
            "dropout after the last normalization; or measure it with training batches (NK210)",
            max(p for _, p in pairs.values()),
        )


def _dropout(exam: Examination, name: str) -> tuple[str, float] | None:
    for before in exam.flow.before(name):
        module = exam.model.get_submodule(before)
        if isinstance(module, _DropoutNd):
            if module.p > 0:
                return before, module.p
        elif not (isinstance(module, PASSED) or type(module).__module__ in MODULES):
            return None
    return None
