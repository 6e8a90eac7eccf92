"""Entropy of a model's predictions, to be minimized without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normkit.errors import ShapeError, TypeMismatchError, message
from normkit.statistics.printing.describe import describe

__all__ = ["Logits", "logits_of", "mean_entropy"]

Logits = Callable[[Any], Tensor]
"""Function of a model's output that returns the logits, (N, K, \\*)."""


def logits_of(output: Any, function: Logits | None) -> Tensor:
    """Return the logits (N, K, \\*) in what a model returned.

    A tensor itself, or the entry or attribute ``logits``.

    Raises:
        TypeMismatchError: there are none.
        ShapeError: there are less than two classes.
        OptionError: they are probabilities.
    """
    values: Any = output if function is None else function(output)
    if function is None and not isinstance(output, Tensor):
        named = output.get("logits") if isinstance(output, dict) else None
        values = named if named is not None else getattr(output, "logits", None)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeMismatchError(
            message(
                "logits of classes (N, K, *) in the model's output, a tensor or its entry logits",
                describe(output if function is None else values),
                "pass logits=lambda output: ..., which returns them",
            )
        )
    if values.dim() < 2 or values.shape[1] < 2:
        raise ShapeError(
            message(
                "logits of at least two classes, (N, K, *)",
                f"a tensor of shape {tuple(values.shape)}",
                "for one logit z of two classes pass logits=lambda z: torch.stack([z, -z], 1) / 2",
            )
        )
    return values


def are_probabilities(values: Tensor) -> bool:
    """Return True if ``values`` are a softmax's, whose softmax again would be almost flat."""
    sums = values.detach().float().sum(1)
    return bool(values.numel() and (values.detach() >= 0).all() and ((sums - 1).abs() < 1e-3).all())


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean over samples (and positions) of −Σ p log p, in nats.

    >>> mean_entropy(torch.zeros(5, 2))
    tensor(0.6931)
    """
    wide = logits.to(torch.promote_types(torch.float32, logits.dtype))
    logs = wide.log_softmax(1)
    return -(logs.exp() * logs.nan_to_num(neginf=0.0)).sum(1).mean()
