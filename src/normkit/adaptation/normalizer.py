"""Normalizer of one adapted layer: its options, what it has bank, and its formula."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normkit.adaptation.moments import Stream, mix, moments_of, widest
from normkit.adaptation.order import Order, OrderWatch
from normkit.adaptation.standardize import standardize
from normkit.errors import StatisticsError, message
from normkit.handle import place_name
from normkit.kernels.modes import exporting, recomputing, transformed
from normkit.nn.stats_spec import StatsSpec
from normkit.statistics.layers.find import NormLayer

functorch_active = torch._C._are_functorch_transforms_active

__all__ = ["MixingNormalizer", "PassCounter"]


class PassCounter:
    """Forward pre-hook that notes which normalizers are called in a pass of a model.

    Each thread has passes of its own.
    """

    def __init__(self) -> None:
        self._here = threading.local()

    def __call__(self, model: nn.Module, inputs: object) -> None:
        """Begin a pass, in evaluation mode, whatever ``train()`` has asked for meanwhile."""
        if model.training:
            for module in model.modules():
                module.training = False
        if not torch.compiler.is_compiling():  # a value that changes compiles each batch anew
            self._here.called = {}

    def call(self, key: tuple[int, int | None]) -> tuple[bool, bool]:
        """Note a call; return whether it is the first of the pass, and whether it is repeated."""
        # Empty where a part of the model is called by itself.
        called: dict[Any, None] = getattr(self._here, "called", {})
        repeated = key in called
        called[key] = None
        return next(iter(called)) == key, repeated

    def __reduce__(self) -> tuple[object, ...]:
        # In a copy or a pickle of the model: a hook that returns its input, of builtins alone, so
        # that it loads without this package.
        return getattr, ({}, "get")


class _Bank:
    """Stream of one bank of a layer, and the watch on its order."""

    def __init__(self, memory: float) -> None:
        self.stream, self.watch, self.size = Stream(memory), OrderWatch(), 0
        self.lock = threading.Lock()
        self.watch.close()


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
        # Each bank is of a domain of its own. Made here, as the compiler cannot make them.
        self._banks = {row: _Bank(memory) for _, row in one.banks}
        self._tests, self._deep = 0, False
        self._one, self._prior, self._memory = one, prior, memory
        self._counter, self._report = counter, report

    def reset(self) -> None:
        """Forget what was seen."""
        for bank in self._banks.values():
            bank.stream.reset()
        self.test_order(self._tests, self._deep)

    def test_order(self, tests: int, deep: bool) -> None:
        """Test this layer's input, as one of ``tests``.

        A layer behind others is tested if ``deep``, and by batches of one size alone: there the
        mean of the batch depends on the size and, over a stream, on what came before.
        """
        self._tests, self._deep = tests, deep
        for bank in self._banks.values():
            bank.watch, bank.size = OrderWatch(), 0

    def normalize(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``x`` with the mixed mean and variance taken out, for mean 0 and variance 1."""
        values, row = self.spec.values(layer, x), self.spec.bank(layer)
        bank = self._banks[row]
        mean, var = self._moments(layer, row, bank, values)
        if not transformed(values) and bank.watch.open and not recomputing():
            with bank.lock:
                self._look(row, bank, values)
        return standardize(layer, self.spec, x, (mean, var), self._one.eps)

    def _remembered(self, layer: nn.Module, row: int | None) -> tuple[Tensor, Tensor]:
        both = getattr(layer, self.spec.mean), getattr(layer, self.spec.var)
        mean, var = both if row is None else (both[0][row], both[1][row])
        return mean, var

    def _moments(
        self, layer: nn.Module, row: int | None, bank: _Bank, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        remembered, samples = self._remembered(layer, row), values.shape[0]
        with_stream = self._memory > 0 and not self._one.per_sample
        if with_stream:
            self._check_stream(values)
        if values.numel() == 0:
            mean, var = bank.stream.moments or remembered
            return mean.detach().to(widest(values)), var.detach().to(widest(values))
        if self._one.per_sample:
            self._check_count(values[0, 0].numel(), "values per channel and sample")
            return mix(self._prior, remembered, 1.0, moments_of(values, True))
        batch = moments_of(values, False)
        if not with_stream or bank.stream.count is None:
            self._check_count(values.numel() // values.shape[1], "values per channel")
        if not with_stream:
            return mix(self._prior, remembered, samples, batch)
        count, mean, var = bank.stream.add(samples, batch, recomputing())
        return mix(self._prior, remembered, count, (mean, var))

    def _check_stream(self, values: Tensor) -> None:
        """Raise where values are not of a stream, but stand for others."""
        compiling = torch.compiler.is_compiling()
        symbolic = not compiling and (
            functorch_active()
            or forward_ad._current_level >= 0
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or type(values).__module__.startswith("torch._subclasses")
        )
        if symbolic or exporting():
            raise StatisticsError(
                message(
                    "plain batches, one after another, with memory",
                    "a call within torch.export, torch.jit.trace or a transform of torch.func",
                    "use memory=0 there, or normkit.adapt(model, batches=stream), which adapts the "
                    "model once",
                )
            )

    def _check_count(self, count: int, what: str) -> None:
        if self._prior == 0 and count < 2:
            raise StatisticsError(
                message(
                    f"more than one of the {what} of {place_name(self._one.name)}, or a prior",
                    "one value, which has no variance, and prior=0",
                    "use normkit.adapt(model, prior=16), or memory=1000, or larger batches",
                )
            )

    def _look(self, row: int | None, bank: _Bank, values: Tensor) -> None:
        """Compare this batch with those before it."""
        samples = values.shape[0]
        first, repeated = self._counter.call((id(self), row))
        if repeated:
            # Several calls for each batch differ by their place in the model.
            bank.watch.close()
            return
        bank.size = bank.size or samples
        if not first and not (self._deep and samples == bank.size):
            return
        # Of one sample each, batches have one label in any order.
        if samples > 1 or (self._memory > 1 and samples):
            result = bank.watch.add(values, self._tests * len(self._banks))
            if result is not None:
                self._report(self._one.name, result)
