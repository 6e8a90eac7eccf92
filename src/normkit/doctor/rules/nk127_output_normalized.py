"""Model's output is that of a normalization layer.

What it checks
    Whether the last module is a normalization.

Why it is bad
    A batch normalization there fixes mean and scale of each output over the batch: as logits they
    favour every class equally often, as regression targets they cannot leave their range, and a
    sample's result in training depends on the others.

Example
    nn.Sequential(..., nn.Linear(512, 10), nn.BatchNorm1d(10))

Use instead
    A linear layer at the end, or a convolution.

When it is right
    In parts whose output others go on with: encoders of transformers, backbones, projection heads
    of self-supervised learning.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding


def check(exam: Examination) -> Iterator[Finding]:
    """Find a normalization at the end."""
    last = exam.norm(exam.flow.last) if exam.flow.last is not None else None
    if last is not None:
        yield Finding(
            "note",
            (last.name,),
            f"The model's output is that of {last.name or 'a'} {type(last.layer).__name__}: mean "
            "and scale of it are fixed.",
            "end with a linear layer, unless the output is a representation",
        )
