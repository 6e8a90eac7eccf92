"""Population statistics the slow and sure way: layer after layer, in float64, all data at once."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn


class _ReachedError(Exception):
    pass


def population(model: nn.Module, images: Tensor, part: int = 1000) -> dict[str, Any]:
    """Mean and unbiased variance of what each batch normalization is given in evaluation.

    The layers before it, in the order of their calls, already use theirs. Nothing of the package
    is used; ``images`` may be many, they are taken ``part`` by ``part`` and kept in float64.
    """
    model = copy.deepcopy(model).double().eval()
    found: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        seen: list[Tensor] = []

        def see(_: nn.Module, args: Any, seen: list[Tensor] = seen) -> None:
            seen.append(args[0].detach())
            raise _ReachedError

        hook = layer.register_forward_pre_hook(see)
        with torch.no_grad():
            for some in images.split(part):
                with contextlib.suppress(_ReachedError):
                    model(some.double())
        hook.remove()
        counts = [x.numel() / x.shape[1] for x in seen]
        axes = [0, *range(2, seen[0].dim())]
        means = torch.stack([x.mean(axes) for x in seen])
        weights = torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)
        mean = (weights * means).sum(0)
        squares = sum((x - mean.view([1, -1] + [1] * (x.dim() - 2))).square().sum(axes)
                      for x in seen)  # fmt: skip
        variance = squares / (sum(counts) - 1)
        layer.running_mean.copy_(mean)  # type: ignore[union-attr, operator]
        layer.running_var.copy_(variance)  # type: ignore[union-attr, operator]
        found[name] = (mean, variance)
    return found


def relative(found: Any, truth: dict[str, Any], eps: float = 1e-5) -> dict[str, float]:
    """By layer the larger of two root mean squares: of the mean's error in deviations, and of the
    variance's relative error."""
    errors = {}
    for name, (mean, variance) in truth.items():
        one, scale = found.layers[name], variance + eps
        errors[name] = max(
            float(((one.mean - mean).square() / scale).mean().sqrt()),
            float(((one.variance - variance) / scale).square().mean().sqrt()),
        )
    return errors
