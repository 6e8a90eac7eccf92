"""Bias before a layer that takes it away.

What it checks
    Whether a convolution or linear layer with a bias feeds nothing but a batch or instance
    normalization.

Why it is bad
    The mean contains the bias and is subtracted, so the output does not depend on it. Its gradient
    is rounding noise; weight decay and the optimizer's state are spent on it; a large one costs
    digits in half types.

Example
    nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))

Use instead
    nn.Conv2d(3, 64, 3, bias=False). In a trained model, subtract the bias from running_mean when
    taking it out.

When it is right
    It does no harm to accuracy; many published networks have it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count


def check(exam: Examination) -> Iterator[Finding]:
    """Find biases without effect."""
    biases = {}
    for one in exam.norms:
        maker = exam.flow.makers.get(one.name)
        if maker is None or one.kind not in ("batch", "instance") or one.frozen:
            continue
        before = exam.model.get_submodule(maker)
        alone = exam.flow.users.get(maker, 0) == 1
        bias = before.bias if isinstance(before, (_ConvNd, nn.Linear)) else None
        if alone and bias is not None and not nn.parameter.is_lazy(bias):
            biases[maker] = bias.numel()
    if biases:
        yield Finding(
            "note",
            tuple(biases),
            f"The bias of {count(biases)} feeds nothing but a normalization that subtracts it: "
            f"{sum(biases.values()):,} parameters without effect.",
            "bias=False in new models; it does no harm in a trained one",
            float(sum(biases.values())),
        )
