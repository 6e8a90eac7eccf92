"""Run a model while observing its normalization layers, on chosen statistics.

Each layer runs in evaluation mode and normalizes with its buffers. These are replaced for the
time, and what a call normalizes with is written into the replacements right before it: the moments
of its own input (as in training), or fixed statistics. So nothing that a layer does in training is
updated: no average, no count of batches, whatever its momentum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.core.pools import PER_CHANNEL, Pool
from normkit.kernels.moments import moments
from normkit.nn.ghostbatchnorm import GhostBatchNorm1d, GhostBatchNorm2d
from normkit.statistics.batches.run_model import Forward, note_batch, run_model
from normkit.statistics.batches.tensors import count_samples
from normkit.statistics.estimates.bias import Tally
from normkit.statistics.estimates.estimate import statistics
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.measuring.calls import CallsEstimate
from normkit.statistics.measuring.check_statistics import check_range
from normkit.statistics.measuring.layer_inputs import LayerInputs

__all__ = ["Observer", "set_tensor"]

_GHOST = (GhostBatchNorm1d, GhostBatchNorm2d)


class _AllSeen(BaseException):
    """Raised when every layer has been called; no Exception, so that no model handles it."""


class Observer:
    """Collects the moments of the layers' inputs, batch after batch."""

    def __init__(self, model: nn.Module, layers: Sequence[NormLayer]) -> None:
        self.model = model
        self.layers = layers
        self.estimates: dict[str, CallsEstimate] = {}
        self.output: Any = None  # of the last batch that ran to the end
        self._fixed: Mapping[str, LayerStatistics] = {}
        self._names = [{row: name for name, row in one.banks} for one in layers]
        self._by_bank = layers_by_bank(layers)
        self._modes = [False for _ in layers]
        self.inputs = LayerInputs(layers)
        self._batch: dict[str, list[Moments | None]] = {}
        self._calls: list[int] = []
        self._call_orders: list[list[int]] = []  # of the last two batches that ran to the end
        self.batches = 0  # that were not empty
        self._number, self._is_next = 0, True  # of a batch in its pass, for errors
        self._first_count = 0  # samples that the first layer got
        self.single: str | None = None  # a layer that the last batch gave one value per channel
        self._samples: int | None = None  # in this batch
        self._lost = 0.0  # 1/n for the fewest samples that a layer has normalized by so far
        self._tallies: dict[str, Tally] = {}  # of this batch
        self._may_stop = self._has_stopped = False
        # Not where a hook waits for the end of a forward, such as one that loads weights before
        # it and drops them after it.
        self._run_to_end = any(
            module._forward_hooks or "forward" in vars(module) for module in model.modules()
        ) or is_sharded(model)

    def start(
        self,
        fixed: Mapping[str, LayerStatistics],
        estimates: dict[str, CallsEstimate] | None = None,
        by_parts: bool = False,
        again: bool = False,
    ) -> None:
        """Set the statistics to normalize with: ``fixed``, or else each input's own moments.

        Moments are collected in ``estimates``, or in new ones; ``by_parts`` lets ghost batch
        normalization take those of each part of the batch, as in training. ``again`` tells that the
        same batch follows.
        """
        self._fixed = fixed
        self.estimates = {} if estimates is None else estimates
        self._is_next = not again
        self._number = 0 if estimates is None else self._number
        # Moments sample by sample, or part by part, only the layer can normalize by; it does so in
        # training mode, and updates the replaced buffers.
        self._modes = [
            (one.per_sample or (by_parts and isinstance(one.layer, _GHOST)))
            and not any(name in fixed for name in names.values())
            for one, names in zip(self.layers, self._names, strict=True)
        ]

    def run(self, batch: Any, forward: Forward | None, to_end: bool = False) -> int:
        """Run the model on a batch and return the number of samples in it.

        Args:
            batch: any batch.
            forward: called in place of the rule for batches.
            to_end: run the whole model, for its ``output``, and keep nothing of a batch that
                training mode would refuse, see ``single``; else stop after the last observed
                layer, once it is known which that is.
        """
        self._batch, self._calls, self._first_count, self.single = {}, [], 0, None
        self._tallies, self._lost = {}, 0.0
        self._samples = samples = count_samples(batch)
        if samples == 0:
            return 0
        self.batches += 1
        self._number += self._is_next
        # A user's function may need to reach its end. And batches 1, 2, 4, 8, … show whether
        # other layers are called by now.
        whole = forward is not None or to_end or self.batches & (self.batches - 1) == 0
        self._may_stop = not (whole or self._run_to_end) and self._calls_repeat()
        try:
            self.output = run_model(self.model, batch, forward)
        except _AllSeen:
            self._has_stopped = True
        except Exception as error:
            note_batch(error, self.model, batch, self._number)
            raise
        else:
            self._run_to_end |= self._has_stopped and self._calls != self._call_orders[-1]
            self._call_orders = [*self._call_orders[-1:], self._calls]
        samples = self._first_count if samples is None else samples
        if to_end and self.single is not None:
            return samples
        for name, calls in self._batch.items():
            channels = next((len(one.mean) for one in calls if one is not None), None)
            if name not in self.estimates and channels is not None:
                self.estimates[name] = CallsEstimate(channels, self._by_bank[name].per_sample)
            if name in self.estimates:
                estimate = self.estimates[name]
                estimate.add(*calls)
                estimate.tally = estimate.tally.plus(self._tallies.get(name, Tally()))
        return samples

    def run_along(self, batch: Any, forward: Forward | None) -> int:
        """Run the whole model on a batch without counting it, for other ranks; return 0."""
        before, self.estimates = self.estimates, {}
        try:
            self.run(batch, forward, to_end=True)
        finally:
            self.estimates = before
        return 0

    def first_input(self) -> LayerStatistics | None:
        """Return statistics of the first call of the layer that was called first, if any was."""
        one = next(iter(self.estimates.values()), None)
        if one is None:
            return None
        units = (one.calls[0] if one.calls else one).units()
        return statistics(units, one.per_sample) if bool((units.count > 0).any()) else None

    def _calls_repeat(self) -> bool:
        """True if the last two batches called every layer, in the same order."""
        orders = self._call_orders
        return len(orders) == 2 and orders[0] == orders[1] and len({*orders[0]}) == len(self.layers)

    def observe(self, index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the moments of a layer's input, right before its forward."""
        one = self.layers[index]
        # Here, as a user's forward may call train(), or the model itself.
        if one.layer.training != self._modes[index]:
            one.layer.training = self._modes[index]
        values = self.inputs.values(index, args, kwargs)
        if values is None:
            return
        bank = one.spec.bank(one.layer)
        name = self._names[index][bank]
        batch = _sample_moments(values) if one.per_sample else moments(values, PER_CHANNEL)
        self._first_count = self._first_count or len(values)
        if not one.per_sample and values.numel() == len(batch.mean) and name not in self._fixed:
            self.single = name if self.single is None else self.single
        self._batch.setdefault(name, []).append(batch if values.numel() else None)
        if values.numel():
            self._count(name, one, values, by_batch=name not in self._fixed)
        self._set_statistics(one, bank, batch, self._fixed.get(name))
        self._calls.append(index)
        if self._may_stop and self._calls == self._call_orders[-1]:
            raise _AllSeen

    def _count(self, name: str, one: NormLayer, values: Tensor, by_batch: bool) -> None:
        """Add to the layer's tally what the calls before it lose; and take note of its own."""
        samples = len(values)
        weight = samples if one.per_sample else values.numel() // values.shape[1]
        tally = self._tallies.get(name, Tally())
        self._tallies[name] = tally.plus(Tally(1, weight * self._lost))
        if by_batch:
            # What a model makes of a sample, such as the regions of an image, is not independent.
            together = 1 if one.per_sample else min(samples, self._samples or samples)
            self._lost = max(self._lost, 1 / together)

    def _set_statistics(
        self, one: NormLayer, bank: int | None, batch: Moments, fixed: LayerStatistics | None
    ) -> None:
        """Write what this call normalizes with."""
        if fixed is None and one.layer.training:
            return
        # Biased to normalize the batch it comes from, as in training.
        variance = batch.variance.nan_to_num(1.0) if fixed is None else fixed.variance
        names = (one.spec.mean, one.spec.var)
        values = (batch.mean if fixed is None else fixed.mean, variance)
        for name, buffer, value in zip(names, one.tensors, values, strict=True):
            # A new one for each call: a gradient taken within the model may need the former.
            new = buffer.clone()
            # Infinite, it would make what follows constant. Fixed ones are checked at the end:
            # they may be so for one pass. Other types do not make a device wait.
            if fixed is None and (new.is_cpu or new.dtype == torch.float16):
                check_range(value, new.dtype, one.name)
            (new if bank is None else new[bank]).copy_(value)
            set_tensor(one.layer, name, new)


def set_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """Set a tensor of a layer, a buffer or a parameter."""
    parameter = name in layer._parameters and not isinstance(value, nn.Parameter)
    setattr(layer, name, nn.Parameter(value, requires_grad=False) if parameter else value)


def _sample_moments(values: Tensor) -> Moments:
    """Average each sample's mean and unbiased variance over samples, a sample counting one."""
    n, c = values.shape[:2]
    each = moments(values, Pool("group", max(c, 1)))
    size = float(values.numel() // max(n * c, 1))
    variance = each.m2.reshape(n, c) / (size - 1)
    count = torch.full((), float(n), dtype=torch.float64, device=each.mean.device)
    return Moments(count, each.mean.reshape(n, c).mean(0), variance.sum(0))
