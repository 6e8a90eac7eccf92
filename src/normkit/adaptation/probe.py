"""Try whether a layer of another library computes (x − μ)/√(σ² + ε) of its statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.adaptation.standardize import standardize
from normkit.errors import StatisticsError
from normkit.nn.stats_spec import definer, qualified_name
from normkit.statistics.layers.find import NormLayer

__all__ = ["why_other_formula"]

SAMPLES, POSITIONS = 3, 2

# Of γ, β and an activation whatever they are, the layer's output is this near, of its own size.
TOLERANCE = 1e-3


def why_other_formula(one: NormLayer) -> str | None:
    """Return why a layer cannot be given a normalized input in place of its own, or None.

    It may only if it returns for x, with mean μ and variance σ², what it returns for
    (x − μ)/√(σ² + ε)·√(1 + ε) with mean 0 and variance 1. So both are computed, by a copy of the
    layer, on a few samples, for variances from 1e-4, where ε counts, to 4.
    """
    if qualified_name(definer(type(one.layer), "forward")).startswith(("torch.nn.", "normkit.")):
        return None
    try:
        layer = copy.deepcopy(one.layer).eval()
    except Exception as error:
        return f"cannot be copied to be tried: {type(error).__name__}"
    mean, var = getattr(layer, one.spec.mean).detach(), getattr(layer, one.spec.var).detach()
    steps = torch.arange(mean.shape[-1], device=mean.device, dtype=torch.float64)
    m, v = 0.5 - steps % 3, torch.tensor([1e-4, 1e-2, 1.0, 4.0], device=mean.device)[
        (steps % 4).long()].double()  # fmt: skip
    failure = "no input of 2 to 5 axes fits"
    for x in _inputs(mean):
        try:
            with torch.no_grad():
                values = one.spec.values(layer, x)
                if values.dim() < 2 or values.shape[1] != len(m):
                    continue
                shape = (1, -1, *[1] * (values.dim() - 2))
                # Within some deviations of the mean, so that an activation's bends are met too.
                values.mul_(v.sqrt().view(shape)).add_(m.view(shape))
                mean.copy_(m.expand_as(mean)), var.copy_(v.expand_as(var))
                expected = layer.forward(x.clone())
                z = standardize(layer, one.spec, x, (m, v), one.eps)
                mean.zero_(), var.fill_(1)
                result = layer.forward(z)
        except StatisticsError:
            return "the values that its stats_spec names are no view of its input"
        except Exception as caught:
            failure = f"{type(caught).__name__} on a small input"
            continue
        return None if _near(result, expected) else "normalizes by another formula, or another ε"
    return f"cannot be tried: {failure}"


def _inputs(mean: Tensor) -> Iterator[Tensor]:
    """Yield inputs with the channels on axis 1, and then with the channels last."""
    channels = mean.shape[-1]
    for axes in range(4):
        for shape in (
            (SAMPLES, channels, *[POSITIONS] * axes),
            (SAMPLES, *[POSITIONS] * axes, channels),
        ):
            count = torch.Size(shape).numel()
            x = torch.linspace(-7, 7, count, device=mean.device).sin() * 2
            yield x.view(shape).to(mean.dtype)


def _near(result: object, expected: object) -> bool:
    if not isinstance(result, Tensor) or not isinstance(expected, Tensor):
        return False
    scale = expected.abs().max().clamp_min(1e-6)
    limit = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps)
    return result.shape == expected.shape and bool((result - expected).abs().max() <= limit * scale)
