"""The loss and its gradient along the direction in which a step goes.

Source: Santurkar et al. 2018, *How Does Batch Normalization Help Optimization?*, arXiv 1805.11604,
§3.1.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from normkit.lab.probes.reading import Reading, Step
from normkit.statistics.layers.preserve import preserve_buffers, preserve_rng

__all__ = ["MULTIPLES", "landscape"]

MULTIPLES = (0.5, 1.0, 2.0, 4.0)
"""How far along the gradient is looked, in learning rates."""


@contextlib.contextmanager
def landscape(model: nn.Module, step: Step) -> Iterator[Reading]:
    r"""Measure how loss and gradient change along the gradient, on the batch of the step.

    With the weights w, their gradient g and the rate η, at distances :math:`d = kη` for each k of
    ``MULTIPLES``:

    * ``landscape_range``: the range of :math:`L(w - dg)`, with d = 0 among the distances;
    * ``landscape_change``: the largest :math:`\lVert g(w - dg) - g\rVert`;
    * ``landscape_relative``: the same, over :math:`\lVert g\rVert`;
    * ``landscape_smoothness``: the largest
      :math:`\lVert g(w - dg) - g\rVert / (d\lVert g\rVert)`, the "effective β-smoothness";
    * ``landscape_gradient``: :math:`\lVert g\rVert`.

    Random numbers (noise, dropout) are those of the step itself at every distance. All are None
    where a value is not finite, or the gradient is zero.
    """
    reading = Reading()
    replay = _replay(next(model.parameters()).device)
    yield reading
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    gradient = [weight.grad.detach() for weight in weights if weight.grad is not None]
    length = _norm(gradient) or math.nan  # without a direction nothing can be said
    losses: list[float] = []
    changes: list[float] = []
    with preserve_buffers(model), preserve_rng(), _preserve_values(weights):
        before = [weight.detach().clone() for weight in weights]
        for multiple in (0.0, *MULTIPLES):
            with torch.no_grad():
                for weight, value, slope in zip(weights, before, gradient, strict=True):
                    weight.copy_(value - multiple * step.rate * slope)
            replay()
            loss = step.loss()
            losses.append(loss.item())
            if multiple:
                there = torch.autograd.grad(loss, weights)
                changes.append(_norm([a - b for a, b in zip(there, gradient, strict=True)]))
    distances = [multiple * step.rate * length for multiple in MULTIPLES]
    values = {
        "range": max(losses) - min(losses),
        "change": max(changes),
        "relative": max(changes) / length,
        "smoothness": max(map(operator.truediv, changes, distances)),
        "gradient": length,
    }
    finite = all(map(math.isfinite, (*losses, *values.values())))
    for name, value in values.items():
        reading.scalars[f"landscape_{name}"] = value if finite else None


def _replay(device: torch.device) -> Callable[[], None]:
    """Return a function that puts the generators back to where they are now."""
    of = torch if device.type == "cpu" else torch.get_device_module(device)
    start = of.get_rng_state()
    return lambda: of.set_rng_state(start)


def _norm(tensors: Sequence[Tensor]) -> float:
    # Summed in double: a gradient that is nearly nothing must not become nothing.
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


@contextlib.contextmanager
def _preserve_values(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
