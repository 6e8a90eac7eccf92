"""γ and β with which converted layers return what they returned before, on given batches.

The former layers run first: mean and deviation of each channel of their outputs are kept. Then the
converted ones are solved one after the other, in the order in which the model calls them, each in a
pass of its own over the same batches, as the input of a layer depends on those before it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.core.moments import Moments, merge
from normkit.errors import StatisticsError, message
from normkit.handle import Skipped, Step, place_name
from normkit.nn.layer import Layer
from normkit.statistics.batches.run_model import Forward, note_batch, run_model
from normkit.statistics.batches.tensors import count_samples
from normkit.statistics.layers.find import unwrap
from normkit.statistics.layers.preserve import overwrite
from normkit.surgery.conversion.calls import as_in_evaluation
from normkit.surgery.conversion.plan import Conversion

__all__ = ["Matching"]

# Values of each layer's outputs that are kept for the comparison before and after.
COMPARED = 50_000

# Deviation of normalized values, usually 1, below which they are constant but for rounding.
TINY = 1e-5


class _Observed(NamedTuple):
    """Outputs of a layer in one pass: moments by channel, and some values of the first batch."""

    moments: Moments
    values: Tensor


class Matching:
    """Layers of a model whose γ and β are to be solved for; made before they are converted.

    Args:
        model: the model, with its former layers.
        layers: those that will compute something else.
        batches: kept batches.
        forward: as in :func:`normkit.recalibrate`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Conversion],
        batches: Sequence[Any],
        forward: Forward | None,
    ) -> None:
        self._model, self._batches, self._forward = unwrap(model), batches, forward
        self._layers = {one.name: one.module for one in layers}
        sources = {id(one.module): one.source for one in layers}
        self._former = self._observe(self._layers, lambda m, x: _outputs(sources[id(m)], x))
        self._saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        self.distances: dict[str, tuple[float, float]] = {}
        """By layer, how far its outputs are from the former ones, in deviations of those: with γ
        and β taken over, and solved."""

    def solve(self, measures: bool) -> None:
        """Solve for γ and β of the converted layers; ``measures``: and for running statistics."""
        taken_over = self._observe(self._layers, _outputs)
        for name in taken_over:  # in the order of the calls
            layer = self._layers[name]
            if name not in self._former:
                continue
            if measures:
                self._measure(name, layer)
            inputs = self._observe({name: layer}, _normalized)
            self._set_affine(name, layer, inputs[name].moments)
        solved = self._observe(self._layers, _outputs)
        for name, former in self._former.items():
            if name in taken_over:
                both = (taken_over[name].values, solved[name].values)
                first, second = (_distance(values, former.values) for values in both)
                self.distances[name] = first, second

    def summary(self) -> str:
        """Say what was solved, on how much, and how far the outputs are from the former ones."""
        samples = sum(count_samples(batch) or 1 for batch in self._batches)
        count = len(self.distances)
        head = f"γ and β of {count} layer{'s' * (count != 1)} solved on {samples} samples"
        rest = len(self._layers) - len(self.distances)
        tail = f"; {rest} not called, with γ and β taken over" if rest else ""
        if not self.distances:
            return head + tail
        first, second = (
            math.sqrt(sum(d * d for d in each) / len(self.distances))
            for each in zip(*self.distances.values(), strict=True)
        )
        return (
            f"{head}: outputs {second:.2f} deviations off (root mean square), {first:.2f} before"
            f"{tail}"
        )

    def step(self) -> Step:
        """Return the step whose reverse restores γ, β and statistics to those before."""

        def undo() -> Skipped | None:
            for layer, name, tensor, before in reversed(self._saved):
                table = layer._parameters if name in layer._parameters else layer._buffers
                if table.get(name) is tensor:
                    overwrite(tensor, before)
            self._saved.clear()
            return None

        return Step(lambda: None, undo)

    def _measure(self, name: str, layer: nn.Module) -> None:
        inputs = self._observe({name: layer}, _inputs)[name].moments
        count = int(inputs.count)
        if count < 2:
            raise _not_finite(name, "a single value for each channel")
        self._write(name, layer, "running_mean", inputs.mean)
        self._write(name, layer, "running_var", inputs.unbiased)
        batches = torch.tensor(len(self._batches))
        self._write(name, layer, "num_batches_tracked", batches)

    def _set_affine(self, name: str, layer: nn.Module, normalized: Moments) -> None:
        """Set γ and β by channel to match mean and deviation; γ keeps its sign."""
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        former = self._former[name].moments
        deviation = normalized.variance.sqrt()
        # Where the layer returns a constant, no γ makes it vary: it stays.
        varies = deviation > TINY
        scale = former.variance.sqrt() / torch.where(varies, deviation, 1.0)
        gamma = torch.ones_like(scale)
        if weight is not None:
            now = weight.detach().to(scale)
            gamma = torch.where(varies, scale.copysign(now), now)
            self._write(name, layer, "weight", gamma)
        if bias is not None:
            self._write(name, layer, "bias", former.mean - gamma * normalized.mean)

    def _write(self, name: str, layer: nn.Module, key: str, values: Tensor) -> None:
        if not bool(values.isfinite().all()):
            raise _not_finite(name, "NaN or infinity")
        table = layer._parameters if key in layer._parameters else layer._buffers
        tensor = table.get(key)
        if tensor is not None:
            self._saved.append((layer, key, tensor, tensor.detach().clone()))
            overwrite(tensor, values.reshape(tensor.shape))

    def _observe(
        self, layers: dict[str, nn.Module], of: Callable[[nn.Module, Tensor], Tensor]
    ) -> dict[str, _Observed]:
        """Run the batches, and return what ``of`` computes of the inputs of each layer called."""
        moments: dict[str, list[Moments]] = {}
        values: dict[str, list[Tensor]] = {}
        first = True

        def hook_of(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
                x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
                if x is None or x.dim() < 2 or not x.numel():
                    return
                y = of(layer, x.detach())
                part = Moments.of(y, tuple(i for i in range(y.dim()) if i != 1))
                parts = moments.setdefault(name, [])
                parts[:] = [merge([*parts, part])]
                if first:
                    stride = max(1, y.numel() // COMPARED) | 1
                    values.setdefault(name, []).append(y.flatten()[::stride].double())

            return hook

        with as_in_evaluation(self._model), contextlib.ExitStack() as stack:
            for name, layer in layers.items():
                hook = layer.register_forward_pre_hook(hook_of(name), with_kwargs=True)
                stack.callback(hook.remove)
            for number, batch in enumerate(self._batches):
                try:
                    run_model(self._model, batch, self._forward)
                except Exception as error:
                    note_batch(error, self._model, batch, number)
                    raise
                first = False
        return {
            name: _Observed(parts[0], torch.cat(values.get(name, [torch.zeros(0)])))
            for name, parts in moments.items()
        }


def _outputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what ``layer`` computes before residual and activation."""
    return _twin(layer, {}).forward(x)  # type: ignore[no-any-return]


def _normalized(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = _twin(layer, {"weight": None, "bias": None}).forward(x)
    return y


def _inputs(layer: nn.Module, x: Tensor) -> Tensor:
    return x


def _twin(layer: nn.Module, parameters: dict[str, Any]) -> Any:
    """Return ``layer`` without hooks and activation, with other parameters."""
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    vars(twin)["_parameters"] = {**layer._parameters, **parameters}
    vars(twin)["training"] = False
    if isinstance(layer, Layer):
        vars(twin).update(_act=None, _act_option=None)
    return twin


def _distance(values: Tensor, former: Tensor) -> float:
    """Root mean square of a difference, in deviations of ``former``."""
    if values.shape != former.shape or not len(former):
        return math.nan
    deviation = float(former.std(unbiased=False))
    difference = float((values - former).square().mean().sqrt())
    return difference / deviation if deviation else math.inf if difference else 0.0


def _not_finite(name: str, received: str) -> StatisticsError:
    return StatisticsError(
        message(
            "batches on which every layer to solve returns finite values that vary",
            f"{received} at {place_name(name)}",
            "check the batches, or omit them to take γ and β over",
        )
    )
