"""Normalizer of one adapted layer: its options, what it has seen, and its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normkit.adaptation.moments import Stream, mix, moments_of
from normkit.adaptation.order import Order, OrderWatch
from normkit.errors import StatisticsError, message
from normkit.handle import place_name
from normkit.kernels.modes import recomputing, transformed
from normkit.nn.stats_spec import StatsSpec
from normkit.statistics.layers.find import NormLayer

__all__ = ["MixingNormalizer", "PassCounter"]


class PassCounter:
    """Forward pre-hook that counts the passes of a model.

    Attributes:
        passes: number so far.
        first: identity of the normalizer called first in this pass: its input has passed no other.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.first: int | None = None

    def __call__(self, model: nn.Module, inputs: object) -> None:
        """Count one."""
        self.passes += 1
        self.first = None


class MixingNormalizer:
    """Normalize the input of one layer by its moments, mixed with those that the layer remembers.

    Args:
        one: the layer.
        prior: samples that the remembered moments weigh.
        memory: samples of the stream that the input's moments are of; 0 for the batch alone.
        counter: counts the passes of the model.
        report: function that takes each result of the test of order.
    """

    def __init__(
        self,
        one: NormLayer,
        prior: float,
        memory: float,
        counter: PassCounter,
        report: Callable[[str, Order], None],
    ) -> None:
        self.spec: StatsSpec = one.spec
        self.stream = Stream(memory)
        self.watch = OrderWatch()
        self.watch.close()
        self._tests, self._deep, self._size = 0, False, 0
        self._one, self._prior, self._memory = one, prior, memory
        self._counter, self._report = counter, report
        self._last_pass = 0

    def reset(self) -> None:
        """Forget what was seen."""
        self.stream.reset()
        self.test_order(self._tests, self._deep)

    def test_order(self, tests: int, deep: bool) -> None:
        """Test this layer's input, as one of ``tests``.

        A layer behind others is tested if ``deep``, and by batches of one size alone: there the
        mean of the batch depends on the size and, over a stream, on what came before.
        """
        self._tests, self._deep, self._size = tests, deep, 0
        self.watch = OrderWatch()

    def normalize(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``x`` with the mixed mean and variance taken out, for mean 0 and variance 1."""
        values = self.spec.values(layer, x)
        mean, var = self._moments(layer, values)
        if self.watch.open and not transformed(values):
            self._look(values)
        eps = self._one.eps
        # The layer divides by √(1 + ε).
        scale = (var + eps).clamp_min(torch.finfo(var.dtype).tiny).rsqrt() * math.sqrt(1 + eps)
        shape = (*mean.shape[:-1], -1) if mean.dim() > 1 else (1, -1)
        shape = (*shape, *[1] * (values.dim() - 2))
        mean, scale = mean.reshape(shape), scale.reshape(shape)
        if values is x:
            return ((x - mean) * scale).to(x.dtype)
        y = x.to(mean.dtype, copy=True)
        view = self.spec.values(layer, y)
        if view.data_ptr() != y.data_ptr() and view.numel():
            raise StatisticsError(
                message(
                    f"values of {place_name(self._one.name)} that are a view of its input, such as "
                    "x.movedim(-1, 1), to be normalized in place",
                    "a copy",
                    "freeze the layer first, normkit.freeze(layer), and adapt the others",
                )
            )
        view.sub_(mean).mul_(scale)
        return y.to(x.dtype)

    def _remembered(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        row = self.spec.bank(layer)
        both = getattr(layer, self.spec.mean), getattr(layer, self.spec.var)
        mean, var = both if row is None else (both[0][row], both[1][row])
        return mean, var

    def _moments(self, layer: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
        remembered = self._remembered(layer)
        samples, wide = values.shape[0], torch.promote_types(torch.float32, values.dtype)
        if values.numel() == 0:
            mean, var = self.stream.moments or remembered
            return mean.detach().to(wide), var.detach().to(wide)
        if self._one.per_sample:
            self._check_count(values[0, 0].numel(), "values per channel and sample")
            return mix(self._prior, remembered, 1.0, moments_of(values, True))
        batch = moments_of(values, False)
        if self._memory == 0:
            self._check_count(values.numel() // values.shape[1], "values per channel")
            return mix(self._prior, remembered, float(samples), batch)
        return self._over_stream(remembered, samples, values, batch)

    def _over_stream(
        self,
        remembered: tuple[Tensor, Tensor],
        samples: int,
        values: Tensor,
        batch: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        if not recomputing():
            first = self.stream.count is None
            self.stream.add(samples, batch)
            if first:
                self._check_count(values.numel() // values.shape[1], "values per channel")
        count, merged = self.stream.count, self.stream.moments
        assert count is not None and merged is not None
        # Gradients go through this batch's part.
        share = samples / count
        target = tuple(
            all_ + share * (now - now.detach()) for all_, now in zip(merged, batch, strict=True)
        ) if torch.is_grad_enabled() else merged  # fmt: skip
        return mix(self._prior, remembered, count, target)  # type: ignore[arg-type]

    def _check_count(self, count: int, what: str) -> None:
        if self._prior == 0 and count < 2:
            raise StatisticsError(
                message(
                    f"more than one of the {what} of {place_name(self._one.name)}, or a prior",
                    "one value, which has no variance, and prior=0",
                    "use normkit.adapt(model, prior=16), or memory=1000, or larger batches",
                )
            )

    def _look(self, values: Tensor) -> None:
        """Compare this batch with those before it."""
        counter, samples = self._counter, values.shape[0]
        if counter.passes and counter.passes == self._last_pass:
            # Several calls for each batch differ by their place in the model.
            self.watch.close()
            return
        self._last_pass = counter.passes
        counter.first = counter.first or id(self)
        self._size = self._size or samples
        if counter.first != id(self) and not (self._deep and samples == self._size):
            return
        # Of one sample each, batches have one label in any order.
        if samples > 1 or (self._memory > 1 and samples):
            result = self.watch.add(values, self._tests)
            if result is not None:
                self._report(self._one.name, result)
