"""Each weight layer: the norms of its gradient, its weight and its input."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

from normkit.lab.probes.reading import Hook, Reading, Step

__all__ = ["gradients", "layers", "weight_layers"]


@contextlib.contextmanager
def gradients(model: nn.Module, step: Step) -> Iterator[Reading]:
    """Measure the norm of the loss's gradient in each weight layer: ``gradient{k}_norm``."""
    reading = Reading()
    yield reading
    for number, module in enumerate(weight_layers(model), start=1):
        if module.weight.grad is not None:
            norm = module.weight.grad.norm()
            reading.scalars[f"gradient{number}_norm"] = norm.item() if norm.isfinite() else None


@contextlib.contextmanager
def layers(model: nn.Module, step: Step) -> Iterator[Reading]:
    """Measure the input, the weight and the output gradient of each weight layer.

    For the k-th weight layer in order, before the optimizer's step:

    * ``layer{k}_input``: root mean square of its input;
    * ``layer{k}_weight``: Frobenius norm of its weight, without the bias;
    * ``layer{k}_gradient``: norm of the loss's gradient with respect to its output, that is before
      any normalizer. All elements of the batch count alike.

    A layer that is called more than once in the step is read over all calls together. Values that
    were not observed, or are not finite, are None.
    """
    reading = Reading()
    weighted = weight_layers(model)
    # Sums of squares in double: they neither overflow nor lose a gradient that is nearly nothing.
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def add(name: str, values: Tensor) -> None:
        squares[name] += values.detach().double().square().sum().item()
        counts[name] += values.numel()

    with contextlib.ExitStack() as hooks:
        for number, module in enumerate(weighted, start=1):
            name = f"layer{number}"

            def see(
                _: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, name: str = name
            ) -> None:
                add(f"{name}_input", inputs[0])
                if out.requires_grad:
                    out.register_hook(lambda gradient: add(f"{name}_gradient", gradient))

            hooks.enter_context(contextlib.closing(Hook(module.register_forward_hook(see))))
        yield reading
    for number, module in enumerate(weighted, start=1):
        name = f"layer{number}"
        add(f"{name}_weight", module.weight)
        for what, mean in (("input", True), ("weight", False), ("gradient", False)):
            key = f"{name}_{what}"
            value = squares[key] / (counts[key] if mean and counts[key] else 1)
            valid = counts[key] > 0 and math.isfinite(value)
            reading.scalars[key] = math.sqrt(value) if valid else None


def weight_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return all convolutions and dense layers, in module order.

    >>> len(weight_layers(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
    2
    """
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
