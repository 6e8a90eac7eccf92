"""Bias before a layer that takes it away.

What it checks
    Whether a convolution with a bias feeds nothing but a batch or instance normalization, or a
    linear layer of inputs (N, C) nothing but a batch normalization. It takes a model that can be
    traced: other uses of a tensor do not show otherwise. Layers held in evaluation mode do not
    count, which subtract no batch mean.

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
from normkit.doctor.norms import Norm
from normkit.doctor.states import count, still_in_training
from normkit.nn.stats_spec import stats_spec


def check(exam: Examination) -> Iterator[Finding]:
    """Find biases without effect."""
    biases: dict[str, int] = {}
    still = still_in_training(exam)
    for one in exam.norms:
        maker = exam.flow.makers.get(one.name)
        if maker is None or not exam.flow.complete or id(one.layer) in still:
            continue
        before = exam.model.get_submodule(maker)
        if exam.flow.users.get(maker, 0) == 1 and _takes_away(exam, one, maker, before):
            biases[maker] = before.bias.numel()  # type: ignore[operator]
    if biases:
        yield Finding(
            "note",
            tuple(biases),
            f"The bias of {count(biases)} feeds nothing but a normalization that subtracts it: "
            f"{sum(biases.values()):,} parameters without effect.",
            "bias=False in new models; it does no harm in a trained one",
            float(sum(biases.values())),
        )


def _takes_away(exam: Examination, one: Norm, maker: str, before: nn.Module) -> bool:
    """Return True if the layer's mean contains the bias of the module before it, and only that."""
    if not isinstance(before, (_ConvNd, nn.Linear)):
        return False
    if before.bias is None or nn.parameter.is_lazy(before.bias):
        return False
    spec = stats_spec(one.layer)
    if spec is not None and not spec.affine:  # a mean over channels leaves what each adds
        return False
    if isinstance(before, _ConvNd):
        return one.kind in ("batch", "instance")
    # Of (N, L, C) the bias lies along the last axis, and the channels along the second.
    channels = getattr(one.layer, "num_features", None)
    rank = len(exam.flow.shapes.get(maker, (0, 0)))
    return one.kind == "batch" and channels == before.out_features and rank == 2
